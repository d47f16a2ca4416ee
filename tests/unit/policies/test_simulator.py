"""The simulator: virtual time, what it counts, the files it reads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.scheduling import SchedulingPolicy
from backendai_ray.core.sessions import ClusterMode
from backendai_ray.core.slots import ResourceSlots
from policies.drf import DrfPolicy
from policies.fifo import FifoPolicy
from policies.lifo import LifoPolicy
from policies.selection import Concentrated
from policies.simulator.engine import History, simulate
from policies.simulator.jobs import Job, make_job
from policies.simulator.metrics import Summary, jain_index, summarise
from policies.simulator.node_files import read_nodes
from policies.simulator.trace_files import read_trace
from policies.testing import make_node

NODES = [make_node("n0", cpu=4, gpus=4), make_node("n1", cpu=4, gpus=4)]
OPENB_NODES = ["sn,cpu_milli,memory_mib,gpu,model\n", "a,64000,1024,2,P100\n", "b,32000,1024,0,\n"]
OPENB_HEADER = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n"
)
PHILLY_HEADER = "timestamp,duration,num_gpus,gpu_time,cluster\n"


def job(name: str, at: float, duration: float, gpus: int = 4, *, size: int = 1, owner: str = "A") -> Job:
    slots = ResourceSlots.parse({"cpu": 1, "cuda.device": gpus})
    mode = ClusterMode.MULTI_NODE
    return make_job(name, slots, submitted_at=at, duration_s=duration, size=size, owner=owner, mode=mode)


def replay(*jobs: Job, every_s: float = 0.0) -> tuple[History, Summary]:
    policy = FifoPolicy(selection=Concentrated())
    history = simulate(NODES, jobs, policy, every_s=every_s, checked=True)
    return history, summarise(history)


def starts(history: History) -> dict[str, float]:
    return {str(name): at for name, at in history.started_at.items()}


def test_jobs_wait_for_room_and_start_when_it_comes() -> None:
    history, figures = replay(job("a", 100, 10), job("b", 100, 20), job("c", 101, 5), job("d", 200, 1))
    assert starts(history) == {"a": 100, "b": 100, "c": 110, "d": 200}
    assert (history.ended_at, figures.makespan_s) == (201, 101)
    assert figures.wait_mean_s == 9 / 4
    assert figures.jct_mean_s == (10 + 20 + 14 + 1) / 4
    assert figures.slowdown == (1 + 1 + 1.4 + 1) / 4, "run times below 10 s count as 10 s"
    assert figures.utilisation == pytest.approx((10 + 20 + 5 + 1) * 4 / (8 * 101))


def test_what_is_free_beside_others_is_in_pieces() -> None:
    _, figures = replay(job("a", 0, 10, gpus=1), job("b", 20, 10, gpus=4))
    assert figures.fragmentation == pytest.approx(3 * 10 / (8 * 30))


def test_room_that_comes_free_at_the_moment_of_an_arrival_is_used() -> None:
    history, _ = replay(job("a", 0, 10, size=2), job("b", 10, 1, size=2))
    assert starts(history) == {"a": 0, "b": 10}


def test_passes_at_intervals() -> None:
    history, _ = replay(job("a", 0, 7, size=2), job("b", 1, 1, size=2), every_s=5)
    assert starts(history) == {"a": 0, "b": 10}
    assert history.ended_at == 11


@pytest.mark.parametrize("every_s", [0.1, 1 / 3, 1e-9, 1e9])
def test_intervals_that_floats_cannot_express_end_all_the_same(every_s: float) -> None:
    history, _ = replay(*(job(f"j{i}", 1507532515 + i * 0.7, 0.3) for i in range(20)), every_s=every_s)
    assert len(history.started_at) == 20


def test_who_can_never_start_is_counted_and_ends_nothing() -> None:
    history, figures = replay(job("huge", 0, 10, gpus=64), job("a", 1, 1))
    assert starts(history) == {"a": 1}
    assert (figures.jobs, figures.never_started) == (2, 1)


def test_nothing_to_do() -> None:
    _, figures = replay()
    assert (figures.jobs, figures.makespan_s, figures.jain) == (0, 0, 1)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    policy = FifoPolicy(selection=Concentrated())
    simulate(NODES, [job("a", 0, 1), job("b", 1, 1)], policy, progress=lambda done, jobs: told.append((done, jobs)))
    assert told == [(1, 2), (2, 2)]


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="same name"):
        replay(job("a", 0, 1), job("a", 1, 1))


def test_the_index_of_fairness() -> None:
    assert jain_index([2, 2, 2]) == pytest.approx(1)
    assert jain_index([1, 0, 0, 0]) == pytest.approx(0.25)
    _, unfair = replay(job("a", 0, 90, size=2, owner="A"), job("b", 0, 10, owner="B"))
    assert unfair.jain == pytest.approx((1 + 0.1) ** 2 / (2 * (1 + 0.01)))


_jobs = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 15), st.integers(1, 5), st.integers(1, 3), st.sampled_from("AB")),
    max_size=10,
).map(lambda rows: [job(f"j{i}", at, run, gpus, size=k, owner=who) for i, (at, run, gpus, k, who) in enumerate(rows)])


@settings(deadline=None)
@given(_jobs, st.sampled_from([FifoPolicy, LifoPolicy, DrfPolicy]), st.sampled_from([0.0, 4.0]))
def test_every_job_that_fits_runs_once_whatever_the_policy(
    jobs: list[Job], policy: type[FifoPolicy | LifoPolicy | DrfPolicy], every_s: float
) -> None:
    def once() -> History:
        made: SchedulingPolicy = policy(selection=Concentrated())
        return simulate(NODES, jobs, made, every_s=every_s, checked=True)

    history = once()
    fits = {j.session.id for j in jobs if j.session.slots["cuda.device"] <= 4000 and _kernels_fit(j)}
    assert set(history.started_at) == fits
    assert all(history.started_at[j.session.id] >= j.session.submitted_at for j in jobs if j.session.id in fits)
    assert summarise(once()) == summarise(history)


def _kernels_fit(one: Job) -> bool:
    gpus = one.session.slots["cuda.device"] // 1000
    return len(one.session.kernel_ids) <= 2 * (4 // gpus)


def test_openb_files() -> None:
    nodes = read_nodes("nodes.csv", OPENB_NODES)
    assert [(n.agent_id, len(n.devices), dict(n.labels)) for n in nodes] == [
        ("a", 67, {"model": "P100"}),
        ("b", 33, {}),
    ]
    rows = [
        OPENB_HEADER,
        "t0,6000,12288,1,460,P100|T4,LS,Running,100,350,120\n",
        "t1,1000,512,0,0,,BE,Running,100,100,100\n",
    ]
    one, two = read_trace("t.csv", rows, nodes)
    assert one.session.slots == ResourceSlots.parse({"cpu": 6, "mem": "12288m", "cuda.shares": "0.46"})
    assert (one.session.submitted_at, one.duration_s, one.session.access_key) == (100, 230, "LS")
    assert one.session.designated_agents == ("a",)
    assert (two.session.designated_agents, two.duration_s) == ((), 0)


def test_philly_files() -> None:
    nodes = [make_node("n", gpus=8)]
    rows = [PHILLY_HEADER, "2017-10-09 07:01:55,66.0,1,66.0,vc1\n", "2017-10-09 07:01:56,5,24,120,vc2\n"]
    one, gang = read_trace("p.csv", rows, nodes)
    assert (one.session.submitted_at, one.duration_s, one.session.access_key) == (1507532515.0, 66.0, "vc1")
    assert one.session.slots == ResourceSlots.parse({"cuda.device": 1})
    assert (len(gang.session.kernel_ids), gang.session.cluster_mode) == (3, ClusterMode.MULTI_NODE)
    assert gang.session.slots == ResourceSlots.parse({"cuda.device": 8})


def test_json_lines() -> None:
    lines = [
        '{"name": "n", "count": 2, "slots": {"cpu": 4, "mem": "8g"}}\n',
        "\n",
        '{"name": "m", "slots": {"cpu": 1}}',
    ]
    nodes = read_nodes("n.jsonl", lines)
    assert [node.agent_id for node in nodes] == ["n-0000", "n-0001", "m"]
    line = {
        "name": "j", "submitted_at": 5, "duration": 2.5, "slots": {"cpu": "0.5"}, "cluster_size": 2,
        "cluster_mode": "multi-node", "owner": "me", "priority": 20, "time_limit": 2,
    }  # fmt: skip
    [read] = read_trace("t.jsonl", [json.dumps(line)], nodes)
    session = read.session
    assert (session.access_key, session.priority, len(session.kernel_ids), read.duration_s) == ("me", 20, 2, 2)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["name,size\n"], r"f, line 1: the header is not that of a trace"),
        ([], r"f, line 1: the header"),
        ([PHILLY_HEADER], r"f: has no job"),
        ([PHILLY_HEADER, "yesterday,1,1,1,vc\n"], r"f, line 2: timestamp: 'yesterday' is no date"),
        ([PHILLY_HEADER, "2017-10-09 07:01:55,-1,1,1,vc\n"], r"f, line 2: duration: '-1' is no number of 0 or more"),
        ([PHILLY_HEADER, "2017-10-09 07:01:55,nan,1,1,vc\n"], r"f, line 2: duration: 'nan'"),
        ([PHILLY_HEADER, "2017-10-09 07:01:55,1,1.5,1,vc\n"], r"f, line 2: num_gpus: 1.5 is not whole"),
        ([PHILLY_HEADER, "2017-10-09 07:01:55,1\n"], r"f, line 2: num_gpus: is missing"),
        ([OPENB_HEADER, "t,1,1,1,2000,,LS,R,0,1,0\n"], r"f, line 2: gpu_milli: 2000 is not between"),
        ([OPENB_HEADER, "t,1,1,1,500,H100,LS,R,0,1,0\n"], r"f, line 2: gpu_spec: no node has the model H100"),
        ([OPENB_HEADER, "t,1,1,0,0,,LS,R,9,1,9\n"], r"f, line 2: deletion_time: 1 is before"),
        ([OPENB_HEADER, *["t,1,1,0,0,,LS,R,0,1,0\n"] * 2], r"f: name: job t is there 2 times"),
        (["{\n"], r"f, line 1: line: is no JSON"),
        (['{"name": "a", "colour": 1}\n'], r"f, line 1: colour: is not known; there are: cluster_mode"),
        (['{"name": "a"}\n'], r"f, line 1: slots: is missing"),
        (['{"name": 3, "slots": {"cpu": 1}}\n'], r"f, line 1: name: '3' is no text"),
        (['{"name": "a", "slots": {"cpu": "much"}}\n'], r"f, line 1: slots: slots.cpu: 'much' is no amount"),
        (['{"name": "a", "slots": {"cpu": 1}, "cluster_mode": "x"}\n'], r"f, line 1: cluster_mode: 'x' is neither"),
        (['{"name": "a", "slots": {"cpu": 1}, "submitted_at": true}\n'], r"f, line 1: submitted_at: 'True' is no"),
    ],
)
def test_what_is_wrong_with_a_trace_is_named(rows: list[str], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        read_trace("f", rows, NODES)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["a,b\n"], r"f, line 1: the header is not that of a node list"),
        ([OPENB_NODES[0]], r"f: has no node"),
        ([OPENB_NODES[0], OPENB_NODES[1], OPENB_NODES[1]], r"f, line 3: sn: node a is there twice"),
        ([OPENB_NODES[0], "a,1,1,99999,\n"], r"f, line 2: gpu: 99999 GPUs in one node"),
        (['{"name": "n"}'], r"f, line 1: slots: is missing"),
        (['{"name": "n", "count": 1e9, "slots": {"cpu": 1}}'], r"f, line 1: count: at most"),
        (['{"name": "n", "slots": {"cpu": "x"}}'], r"f, line 1: slots: slots.cpu"),
    ],
)
def test_what_is_wrong_with_a_node_list_is_named(rows: list[str], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        read_nodes("f", rows)


def test_gpus_need_nodes_that_have_some() -> None:
    with pytest.raises(InvalidParameter, match="no node has any"):
        read_trace("f", [PHILLY_HEADER, "2017-10-09 07:01:55,1,1,1,vc\n"], [make_node("n")])
