"""Scores of a handful of nodes are those of all nodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.scheduling import Snapshot
from policies.columns import RoomCache
from policies.fragmentation import Fragmentation
from policies.selection import Concentrated, Dispersed, QuickSelection, for_pass
from policies.testing_worlds import snapshots


@pytest.mark.parametrize("selection", [Concentrated(), Dispersed(), Fragmentation()])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_quick_way_gives_the_same_scores(selection: Concentrated | Fragmentation, data: st.DataObject) -> None:
    snapshot: Snapshot = data.draw(snapshots())
    room = RoomCache().open(snapshot.nodes)
    scorer = for_pass(selection, room, snapshot)
    assert isinstance(scorer, QuickSelection)
    for session in snapshot.pending:
        needs = room.needs(session.slots)
        fits = [
            row for row in range(len(room.nodes)) if needs and all(room.columns.free[row, c] >= u for c, u in needs)
        ]
        if not fits:
            continue
        few = list(scorer.scores_of_few(session, room.columns, fits))
        assert few == scorer.scores(session, room.columns, np.array(fits)).tolist()
        room.place(fits[0], session.kernel_ids[0], session.slots)
