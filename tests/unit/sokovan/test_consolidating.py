"""Moves on request through Manager, Sokovan and policy host together; only the nodes are fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from actors.testing import OWNER, FakeAgent
from backendai_ray.core.errors import SessionNotFound
from backendai_ray.core.ids import AccessKey
from backendai_ray.core.proposals import MoveRequest
from backendai_ray.core.sessions import Reason, Session, Status

from .test_preempting import start, submit, until
from .test_with_the_manager import GROUP, Everything


@pytest.fixture
async def everything() -> AsyncIterator[Everything]:
    one = Everything(FakeAgent("a1"), FakeAgent("a2"))
    await one.start()
    yield one
    await one.sokovan.stop()
    await one.cluster.settle()
    await one.cluster.check()
    await one.cluster.kill()


async def in_pieces(everything: Everything) -> tuple[Session, Session]:
    """Two cores are free on each of the two nodes, and a session waits for four; returned with the one to move."""
    first, second, third = [await start(everything, await submit(everything, 2, 10)) for _ in range(3)]
    assert [one.main.agent_id for one in (first, second, third)] == ["a1", "a1", "a2"]
    await everything.cluster.terminate(second)
    await everything.cluster.tell(everything.agents[0], [everything.agents[0].end(second.main.id)])
    return await submit(everything, 4, 10), third


async def test_a_proposal_is_carried_out_only_when_asked(everything: Everything) -> None:
    cluster, agents = everything.cluster, {agent.agent_id: agent for agent in everything.agents}
    waiting, movable = await in_pieces(everything)
    ask = MoveRequest(session_id=waiting.id)
    proposal = await everything.sokovan.propose_moves(GROUP, ask, apply=False)
    (move,) = proposal.moves
    assert (move.session_id, move.before, move.after) == (movable.id, ("a2",), ("a1",))
    assert (await cluster.get(movable.id)).status is Status.RUNNING
    somebody_elses = replace(ask, owner=AccessKey("AKIAOTHER"))
    assert (await everything.sokovan.propose_moves(GROUP, somebody_elses, apply=True)).moves == ()
    done = await everything.sokovan.propose_moves(GROUP, replace(ask, owner=OWNER, grace_s=3.0), apply=True)
    assert done.is_applied
    await until(everything, movable, Status.TERMINATING)
    assert agents[move.before[0]].graces[movable.main.id] == 3.0
    late = await submit(everything, 1, 10)
    await cluster.tell(agents[move.before[0]], [agents[move.before[0]].end(movable.main.id, Reason.PREEMPTED)])
    assert (await until(everything, waiting, Status.SCHEDULED)).main.agent_id == "a2"
    again = await until(everything, movable, Status.SCHEDULED)
    assert (again.main.agent_id, again.preemptions) == ("a1", 1)
    assert (await cluster.get(late.id)).status is Status.PENDING
    with pytest.raises(SessionNotFound):
        await everything.sokovan.propose_moves(GROUP, ask, apply=True)
