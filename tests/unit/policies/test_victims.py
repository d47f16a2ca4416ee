"""The search for the cheapest victims, against trying everything."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.ids import KernelId, SessionId
from backendai_ray.core.scheduling import PendingSession, Placement, RunningKernel
from backendai_ray.core.sessions import ClusterMode
from policies.candidates import Candidates, Eligible
from policies.columns import Room, RoomCache
from policies.placing import place
from policies.selection import Concentrated
from policies.testing import make_node, make_session, make_snapshot, run_kernels
from policies.victims import EXACT, Search, Victim, VictimTable, cost_of


def fits(room: Room, session: PendingSession) -> bool:
    return isinstance(place(room, Candidates(room, session, Concentrated()), session), Placement)


def fits_without(room: Room, session: PendingSession, victims: tuple[Victim, ...]) -> bool:
    gone = [(row, name) for victim in victims for row, names in victim.rows.items() for name in names]
    return fits(room.without(gone), session)


def search(room: Room, session: PendingSession, victims: list[Victim]) -> tuple[Victim, ...] | None:
    rows = Eligible.of(room, session).all
    table = VictimTable(room, victims)
    return Search(room, session, rows, table, table.lines_of([True] * len(victims), rows)).cheapest()


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Room, PendingSession, list[Victim]]:
    """A few nodes, sessions of one or two kernels on them that may be ended, and one that finds no room."""
    nodes = [make_node(f"n{i}", cpu=draw(st.integers(2, 4)), gpus=draw(st.integers(0, 2))) for i in range(3)]
    running: list[RunningKernel] = []
    for node in nodes:
        gpus = sum(device.slot == "cuda.device" for device in node.devices)
        for number in range(draw(st.integers(0, 3))):
            amounts = {"cpu": 1, "mem": "1g", **({"cuda_device": 1} if number < gpus else {})}
            if number < sum(device.slot == "cpu" for device in node.devices):
                running.append((node, f"{node.agent_id}-{number}", amounts))  # type: ignore[arg-type]
    kernels: list[RunningKernel] = []
    for node in nodes:
        kernels += run_kernels(node, {name: amounts for at, name, amounts in running if at is node})  # type: ignore[misc]
    owners = [draw(st.integers(0, max(1, len(kernels)))) for _ in kernels]
    room = RoomCache().open(make_snapshot(nodes, [], kernels).nodes)
    victims = []
    for owner in sorted(set(owners)):
        rows: dict[int, tuple[KernelId, ...]] = {}
        for kernel, mine in zip(kernels, owners, strict=True):
            if mine == owner:
                row = int(kernel.agent_id[1:])
                rows[row] = (*rows.get(row, ()), kernel.kernel_id)
        victims.append(Victim(SessionId(f"v{owner}"), draw(st.integers(0, 2)), float(draw(st.integers(0, 3))), rows))
    session = make_session(
        "s",
        size=draw(st.integers(1, 3)),
        mode=draw(st.sampled_from(list(ClusterMode))),
        cpu=draw(st.integers(1, 3)),
        mem="1g",
        **({"cuda_device": draw(st.integers(1, 2))} if draw(st.booleans()) else {}),
    )
    return room, session, victims


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_it_finds_what_trying_everything_finds(world: tuple[Room, PendingSession, list[Victim]]) -> None:
    room, session, victims = world
    if fits_without(room, session, ()):
        return
    sets = [chosen for size in range(1, len(victims) + 1) for chosen in combinations(victims, size)]
    possible = [chosen for chosen in sets if fits_without(room, session, chosen)]
    found = search(room, session, victims)
    if not possible:
        assert found is None
        return
    assert found is not None
    assert fits_without(room, session, found)
    assert len(victims) > EXACT or cost_of(found) == min(map(cost_of, possible))
    assert not any(fits_without(room, session, tuple(v for v in found if v is not one)) for one in found)


def test_of_many_on_a_node_none_is_ended_in_vain() -> None:
    node = make_node("n0", cpu=20)
    kernels = run_kernels(node, {f"k{i}": {"cpu": 1 + i % 3, "mem": "256m"} for i in range(10)})
    room = RoomCache().open(make_snapshot([node], [], kernels).nodes)
    victims = [
        Victim(SessionId(f"v{i}"), i % 2, float(i), {0: (kernel.kernel_id,)}) for i, kernel in enumerate(kernels)
    ]
    session = make_session("s", cpu=6, mem="1g")
    found = search(room, session, victims)
    assert found is not None
    assert len(victims) > EXACT
    assert {victim.priority for victim in found} == {0}
    assert fits_without(room, session, found)
    assert not any(fits_without(room, session, tuple(v for v in found if v is not one)) for one in found)


def test_a_gang_among_many_ends_nobody_in_vain() -> None:
    nodes = [make_node(f"n{i}", cpu=4) for i in range(5)]
    kernels = [k for n in nodes for k in run_kernels(n, {f"{n.agent_id}-{j}": {"cpu": 1} for j in range(4)})]
    room = RoomCache().open(make_snapshot(nodes, [], kernels).nodes)
    victims = [
        Victim(SessionId(f"v{i:02}"), (i * 7) % 3, float(i), {int(kernel.agent_id[1:]): (kernel.kernel_id,)})
        for i, kernel in enumerate(kernels)
    ]
    session = make_session("s", size=6, mode=ClusterMode.MULTI_NODE, cpu=2, mem="1g")
    found = search(room, session, victims)
    assert found is not None
    assert fits_without(room, session, found)
    assert not any(fits_without(room, session, tuple(v for v in found if v is not one)) for one in found)
    assert search(room, make_session("s", size=11, mode=ClusterMode.MULTI_NODE, cpu=2, mem="1g"), victims) is None


def test_one_important_session_is_worth_any_number_of_others() -> None:
    def victim(name: str, priority: int, lost: float) -> Victim:
        return Victim(SessionId(name), priority, lost, {})

    cheap = [victim("a", 1, 9.0), victim("b", 1, 9.0)]
    assert cost_of(cheap) < cost_of([victim("c", 2, 0.0)])
    assert cost_of(cheap[:1]) < cost_of(cheap)
    assert cost_of([victim("a", 1, 1.0)]) < cost_of([victim("b", 1, 2.0)])
