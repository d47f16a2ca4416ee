"""What a group prefers beside its agent selection: nodes that have the image, owners apart, gangs together or spread.

They are options of every built-in selection. Scores are in the selection's own measure: 1 is what lies between an empty
and a full node. None of them keeps a session waiting: a node that is not preferred is taken when there is no other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from enum import StrEnum
from functools import partial

import numpy as np

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import KernelId
from backendai_ray.core.quotas import ScopeKind, scopes_of
from backendai_ray.core.scheduling import AgentSelection, Node, PendingSession, RunningKernel, Snapshot

from .columns import Columns, Floats, Ints, Room, Scorer

_MOST_WEIGHT = 100.0
_ALL_ELSE_EQUAL = 1e-6
_WORST = 1000.0
"""Selections score between 0 and this."""


class GangShape(StrEnum):
    """On which nodes the kernels of a multi-node gang go."""

    PACK = "pack"
    """One node, else the fewest."""
    SPREAD = "spread"
    """A node each, as long as there are nodes."""
    SCORE = "score"
    """Each where the selection would put a single session."""


class Preferences:
    """Checked options."""

    def __init__(
        self,
        *,
        image_locality: float = _ALL_ELSE_EQUAL,
        apart: str = "",
        apart_weight: float = 1.0,
        gangs: str = GangShape.PACK.value,
    ) -> None:
        """Check them.

        Args:
            image_locality: How much a node costs that has not got the session's image; the default decides only
                between nodes that are equal otherwise.
            apart: Whose sessions keep apart: of a ``keypair``, ``user``, ``project`` or ``domain``; empty: nobody's.
            apart_weight: How much each kernel of the same owner costs that is on a node already.
            gangs: ``pack``, ``spread`` or ``score``.

        Raises:
            InvalidParameter: one of them is not possible; the message names it.
        """
        self.image_locality = _weight("image_locality", image_locality)
        self.apart_weight = _weight("apart_weight", apart_weight)
        self.apart = ScopeKind(_one_of("apart", apart, [kind.value for kind in ScopeKind])) if apart else None
        self.gangs = GangShape(_one_of("gangs", gangs, [shape.value for shape in GangShape]))

    def in_pass(self, inner: Scorer, room: Room, snapshot: Snapshot) -> AgentSelection:
        """Return a selection that adds the preferences to what another one scores; where none matters, that one."""
        has_images = self.image_locality and any(node.images for node in room.nodes)
        return PreferringInPass(inner, self, room, snapshot) if has_images or self.apart else inner


class PreferringInPass:
    """Another selection, and preferences on top, during one pass."""

    def __init__(self, inner: Scorer, preferences: Preferences, room: Room, snapshot: Snapshot) -> None:
        self.name = inner.name
        self.gangs = preferences.gangs
        self._inner = inner
        self._preferences = preferences
        self._room = room
        self._owner_of: Mapping[KernelId, str] = {}
        if preferences.apart is not None:
            running = {kernel.kernel_id: self._owner(kernel) for kernel in snapshot.running}
            waiting = {k: self._owner(session) for session in snapshot.pending for k in session.kernel_ids}
            self._owner_of = running | waiting

    def rank(self, session: PendingSession, candidates: Sequence[Node]) -> Sequence[Node]:
        """Return the candidates, best first, as the selection itself would."""
        return self._inner.rank(session, candidates)

    def key_of(self, session: PendingSession) -> Hashable:
        """Return what sessions must have in common, beside their request, to have the same scores."""
        return self._owner(session) if self._preferences.apart is not None else ""

    def scores(self, session: PendingSession, columns: Columns, rows: Ints) -> Floats:
        """Return a score for each of the rows; the lowest is the best."""
        scores = self._inner.scores(session, columns, rows)
        if session.image and self._preferences.image_locality:
            wanted = names_of(session.image)
            has_it = self._room.mask(("image", session.image), partial(_has_image, wanted))
            scores = scores + self._preferences.image_locality * ~has_it[rows]
        if self._preferences.apart is not None:
            scores = scores + self._preferences.apart_weight * self._neighbours(self._owner(session), rows)
        result: Floats = np.minimum(scores, _WORST)
        return result

    def _neighbours(self, owner: str, rows: Ints) -> Floats:
        """Return how many kernels of an owner are on each of the rows now."""
        if not owner:
            return np.zeros(len(rows))
        of, room = self._owner_of, self._room
        counts = [sum(of.get(kernel_id) == owner for kernel_id in room.map(row).held) for row in rows.tolist()]
        return np.array(counts, dtype=np.float64)

    def _owner(self, owned: PendingSession | RunningKernel) -> str:
        return next((str(scope) for scope in scopes_of(owned) if scope.kind is self._preferences.apart), "")


def names_of(image: str) -> frozenset[str]:
    """Return the names under which a node may list an image; no tag means ``latest``, no registry Docker's own."""
    short = image.removeprefix("docker.io/").removeprefix("library/")
    names = {image, short}
    if ":" not in short.rpartition("/")[2]:
        names |= {f"{name}:latest" for name in names}
    return frozenset(names)


def _has_image(wanted: frozenset[str], node: Node) -> bool:
    return not wanted.isdisjoint(node.images)


def _weight(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_WEIGHT:
        raise InvalidParameter(f"{field}: give a number from 0 to {_MOST_WEIGHT:g}, not {value!r}", field=field)
    return float(value)


def _one_of(field: str, value: object, known: Sequence[str]) -> str:
    if value not in known:
        raise InvalidParameter(f"{field}: {value!r} is none of {', '.join(known)}", field=field)
    return str(value)
