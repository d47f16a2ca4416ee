"""The table of runs: serial execution, a bounded queue, a bounded memory."""

from __future__ import annotations

import pytest

from backendai_ray.kernel.bai_runner.records import STDOUT
from backendai_ray.kernel.bai_runner.runs import (
    MAX_KEPT_BYTES,
    MAX_KEPT_OUTPUTS,
    MAX_QUEUED,
    MAX_REMEMBERED,
    QueueFull,
    RunTable,
)


def table_with(*run_ids: str, limit: int = 1 << 30) -> RunTable:
    table = RunTable(limit)
    for run_id in run_ids:
        table.add(run_id, "query", "", {})
    return table


def test_runs_start_in_the_order_of_their_arrival() -> None:
    table = table_with("a", "b")
    first = table.start_next()
    assert first is not None
    assert (first.id, table.summary()) == ("a", ("a", ["b"], []))
    table.end_active(3)
    assert table.summary() == ("", ["b"], ["a"])
    assert (first.state, first.exit_code) == ("ended", 3)


def test_the_queue_is_bounded() -> None:
    table = table_with(*map(str, range(MAX_QUEUED)))
    with pytest.raises(QueueFull):
        table.add("one more", "query", "", {})
    table.start_next()
    table.add("one more", "query", "", {})


def test_ended_ids_are_known_up_to_a_bound_and_their_output_for_less() -> None:
    table = RunTable(1 << 20)
    for i in range(MAX_REMEMBERED + 10):
        table.add(str(i), "query", "", {})
        run = table.start_next()
        assert run is not None
        run.buffer.offer(STDOUT, "x")
        table.end_active(0)
    assert table.get("9") is None
    assert table.get("10") is not None
    with_output = [i for i in range(10, MAX_REMEMBERED + 10) if table.get(str(i)).buffer.size]  # type: ignore[union-attr]
    assert len(with_output) == MAX_KEPT_OUTPUTS
    assert with_output[-1] == MAX_REMEMBERED + 9


def test_the_output_of_ended_runs_is_bounded_together_and_the_latest_is_kept() -> None:
    table = RunTable(1 << 30)
    for i in range(4):
        table.add(str(i), "query", "", {})
        run = table.start_next()
        assert run is not None
        run.buffer.offer(STDOUT, "x" * (MAX_KEPT_BYTES * 2 // 5))
        table.end_active(0)
    sizes = [table.get(str(i)).buffer.size > 0 for i in range(4)]  # type: ignore[union-attr]
    assert sizes == [False, False, True, True]


def test_cancelled_runs_have_ended() -> None:
    table = table_with("a", "b")
    table.start_next()
    table.cancel_queued()
    assert table.start_next() is None
    assert table.get("b").state == "ended"  # type: ignore[union-attr]
