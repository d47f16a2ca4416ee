"""How long sessions will probably run."""

from __future__ import annotations

from dataclasses import replace

from backendai_ray.core.run_times import RunTimes
from backendai_ray.core.sessions import Reason, Session, SessionType, Status
from tests.unit.core.builders import a_session


def ran(seconds: float, *, reason: Reason = Reason.TASK_FINISHED, status: Status = Status.TERMINATED) -> Session:
    return replace(a_session(), status=status, reason=reason, started_at=100.0, terminated_at=100.0 + seconds)


def test_the_last_two_count() -> None:
    times = RunTimes()
    key = ran(0).spec.access_key
    assert times.expected_s(key, SessionType.INTERACTIVE) is None
    for seconds, expected in ((90, 90), (30, 60), (10, 20)):
        times.learn(ran(seconds))
        assert times.expected_s(key, SessionType.INTERACTIVE) == expected
    assert times.expected_s(key, SessionType.BATCH) is None


def test_what_was_cut_off_or_never_ran_says_nothing() -> None:
    times = RunTimes()
    times.learn(ran(5, reason=Reason.PREEMPTED))
    times.learn(ran(5, status=Status.ERROR))
    times.learn(replace(ran(5), started_at=None))
    assert times.expected_s(ran(0).spec.access_key, SessionType.INTERACTIVE) is None
