"""The replay of openb traces: what is read, who is placed where, and that nothing is placed twice."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.core.errors import InvalidParameter
from bench.__main__ import main
from bench.openb_replay import World, replay
from bench.openb_rules import RULES, BestFit, Fgd
from bench.openb_trace import Cluster, Task, arrivals, read_nodes, read_tasks, trace_name

ANY: frozenset[str] = frozenset()


def cluster_of(*nodes: tuple[int, int, str]) -> Cluster:
    """Return nodes of so many cores, GPUs and a model; memory is plenty."""
    width = max(gpus for _, gpus, _ in nodes)
    return Cluster(
        cpu=np.array([cores * 1000 for cores, _, _ in nodes]),
        mem=np.full(len(nodes), 2**20),
        gpus=np.array([[1000] * gpus + [0] * (width - gpus) for _, gpus, _ in nodes]),
        models=tuple(model for *_, model in nodes),
    )


_nodes = st.lists(st.tuples(st.integers(1, 16), st.integers(1, 4), st.sampled_from(["A", "B"])), min_size=1, max_size=5)
_tasks = st.lists(
    st.builds(
        lambda cpu, mem, gpu, models: Task(cpu * 1000, mem, gpu[0], gpu[1], models),
        st.integers(0, 8),
        st.integers(0, 2**19),
        st.sampled_from([(1, 1000), (1, 300), (1, 700), (2, 1000), (4, 1000), (0, 0)]),
        st.sampled_from([ANY, frozenset({"B"}), frozenset({"A", "B"}), frozenset({"gone"})]),
    ),
    min_size=1,
    max_size=6,
).map(lambda tasks: [*tasks, Task(1000, 0, 1, 500, ANY)])


@settings(max_examples=40, deadline=None)
@given(_nodes, _tasks, st.sampled_from(sorted(RULES)), st.integers(0, 3))
def test_nothing_is_given_out_that_is_not_there(
    nodes: list[tuple[int, int, str]], tasks: list[Task], rule: str, seed: int
) -> None:
    cluster = cluster_of(*nodes)
    results = []
    for _ in range(2):
        world = World(cluster)
        coming = arrivals(tasks, cluster.gpu_milli, seed)
        allocated = replay(world, RULES[rule](world, tasks, seed), coming, cluster.gpu_milli)
        assert min(world.cpu.min(), world.mem.min(), world.free.min()) >= 0
        assert (np.diff(allocated) >= 0).all()
        assert allocated[-1] == pytest.approx(100 * (cluster.gpu_milli - world.free.sum()) / cluster.gpu_milli)
        results.append(allocated.tolist())
    assert results[0] == results[1]


def test_fgd_chooses_otherwise_than_best_fit() -> None:
    # The first node is the fuller one, but a task of half a GPU there would break its only free GPU.
    world = World(cluster_of((16, 2, "A"), (64, 2, "A")))
    world.place(0, Task(8000, 0, 1, 1000, ANY), [0])
    world.place(1, Task(1000, 0, 1, 500, ANY), [0])
    half, whole = Task(1000, 0, 1, 500, ANY), Task(8000, 0, 1, 1000, ANY)
    rows = np.arange(2)
    assert BestFit(world, 0).scores(half, rows).argmax() == 0
    fgd = Fgd(world, [half, *[whole] * 9])
    assert fgd.scores(half, rows).argmax() == 1
    assert list(fgd.devices(half, 1)) == [0]


def fragmented(cpu: int, free: list[int], model: str, typical: list[tuple[Task, float]]) -> float:
    """Return the published measure, written down as it is defined."""
    total = 0.0
    for task, share in typical:
        enough = sum(units >= task.units for units in free) >= task.gpus
        if task.gpus and enough and cpu >= task.cpu and (not task.models or model in task.models):
            total += share * sum(units for units in free if units < task.units)
        else:
            total += share * sum(free)
    return total


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 250, 600, 1000]), min_size=3, max_size=3),
    st.integers(4, 16),
    st.sampled_from([Task(2000, 0, 1, 250, ANY), Task(4000, 0, 1, 1000, ANY), Task(3000, 0, 0, 0, ANY)]),
)
def test_the_score_of_fgd_is_the_published_one(free: list[int], cores: int, task: Task) -> None:
    world = World(cluster_of((cores, 3, "A")))
    world.free[0] = free
    trace = [Task(4000, 0, 1, 1000, ANY), Task(2000, 0, 1, 600, frozenset({"A"})), Task(6000, 0, 2, 1000, ANY), task]
    if not len(world.fitting(task, np.array([0]))):
        return
    typical = [(one, trace.count(one) / len(trace)) for one in dict.fromkeys(trace)]
    cpu = cores * 1000
    best = -1
    for device in [i for i, units in enumerate(free) if units >= task.units][: None if task.units < 1000 else 1]:
        left = list(free)
        left[device] -= task.units
        decrease = fragmented(cpu, free, "A", typical) - fragmented(cpu - task.cpu, left, "A", typical)
        best = max(best, int(100 / (1 + math.exp(-decrease / 1000))))
    assert abs(Fgd(world, trace).scores(task, np.array([0]))[0] - best) <= (best == 50)  # half way, sums round


def test_every_task_arrives_once_before_any_comes_again() -> None:
    tasks = [Task(1000 + i, 0, 1, 500, ANY) for i in range(10)]
    coming = arrivals(tasks, 6000, 42)
    assert sorted(coming[:10]) == sorted(tasks)
    assert sum(task.gpu_milli for task in coming) == pytest.approx(7800, abs=500)
    assert coming == arrivals(tasks, 6000, 42) != arrivals(tasks, 6000, 43)


def test_a_trace_that_asks_for_next_to_nothing_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="so few GPUs"):
        arrivals([Task(1000, 0, 1, 1, ANY)], 10_000_000, 42)


NODES = "sn,cpu_milli,memory_mib,gpu,model\n"
TASKS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "header lacks sn"),
        (NODES, "no node has a GPU"),
        (NODES + "n0,1000,1,0,\n", "no node has a GPU"),
        (NODES + "n0,many,1,2,A\n", "line 2: cpu_milli: 'many'"),
        (NODES + "n0,1000,-1,2,A\n", "memory_mib: '-1'"),
        (NODES + "n0,1000,1,nan,A\n", "gpu: 'nan'"),
        (NODES + "n0,1000\n", "gpu: is missing"),
        (NODES + "n0,1,1,99999,A\n", "more than any has"),
        (NODES + "n0,1,1,1,A\nn0,1,1,1,A\n", "line 3: sn: node n0 is there twice"),
    ],
)
def test_what_is_wrong_with_a_node_list_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "nodes.csv"
    path.write_text(text)
    with pytest.raises(InvalidParameter, match=words):
        read_nodes(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name\n", "lacks cpu_milli, memory_mib, num_gpu, gpu_milli"),
        (TASKS + "t,1000,1,0,0\n", "no task asks for a GPU"),
        (TASKS + "t,1000,1,1,1001\n", "gpu_milli: 1001 is not"),
        (TASKS + "t,1000,1,1,0\n", "gpu_milli: 0"),
        (TASKS + "t,1.5,1,1,1000\n", "cpu_milli: 1.5 is not whole"),
    ],
)
def test_what_is_wrong_with_a_trace_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InvalidParameter, match=words):
        read_tasks(path)


def test_models_are_read_and_tasks_with_several_gpus_get_whole_ones(tmp_path: Path) -> None:
    path = tmp_path / "openb_pod_list_small.csv"
    path.write_text(TASKS.replace("\n", ",gpu_spec\n") + "a,1,2,1,300,T4|P100\nb,1,2,2,500,\nc,1,2,0,0,T4\n")
    accepted = frozenset({"T4", "P100"})
    assert read_tasks(path) == [Task(1, 2, 1, 300, accepted), Task(1, 2, 2, 1000, ANY), Task(1, 2, 0, 0, ANY)]
    assert trace_name(path) == "small"


def test_the_figures_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, trace, figures = tmp_path / "nodes.csv", tmp_path / "openb_pod_list_tiny.csv", tmp_path / "figures.json"
    nodes.write_text(NODES + "n0,8000,1000,2,A\nn1,8000,1000,0,\n")
    trace.write_text(TASKS + "t,1000,1,1,500\n")
    options = ["--nodes", str(nodes), "--trace", str(trace), "--seeds", "2", "--json", str(figures)]
    monkeypatch.setattr(sys, "argv", ["bench", "openb", *options])
    assert main() == 0
    by_name = {figure["name"]: figure for figure in json.loads(figures.read_text())}
    assert by_name["openb.tiny.fragmentation.alloc130"]["median"] == 100
    assert by_name["openb.tiny.fragmentation.alloc130"]["n"] == 2
    assert {"openb.tiny.fgd.alloc100", "openb.tiny.seconds"} <= by_name.keys()


def test_a_file_that_is_not_there_ends_the_bench_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = str(tmp_path / "gone.csv")
    monkeypatch.setattr(sys, "argv", ["bench", "openb", "--nodes", gone, "--trace", gone])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "gone.csv: cannot be read" in capsys.readouterr().err
