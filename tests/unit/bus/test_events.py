"""What a change of status is called, and how it travels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_ray.bus import ALL_EVENT_NAMES, DomainEvent, events_of, names_of, parse_event_id
from backendai_ray.bus.events import VERBS
from backendai_ray.core.ids import AccessKey, KernelId, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.sessions import Reason, Status
from backendai_ray.records import DecodeError
from backendai_ray.store import OutboxEvent

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
CHANGES = st.builds(
    StatusChange,
    session_id=TEXT.map(SessionId),
    kernel_id=st.none() | TEXT.map(KernelId),
    before=st.sampled_from(Status),
    after=st.sampled_from(Status),
    reason=st.sampled_from(Reason),
    message=TEXT,
    at=st.floats(0, 2e9),
    cause=TEXT,
)
COMMITTED = st.builds(
    OutboxEvent,
    number=st.integers(1, 2**62),
    change=CHANGES,
    access_key=TEXT.map(AccessKey),
    session_name=TEXT,
    domain=TEXT,
    project=TEXT,
    user=TEXT,
)


def _change(after: Status, reason: Reason = Reason.PROGRESS, kernel: str | None = None) -> StatusChange:
    return StatusChange(
        session_id=SessionId("s"),
        kernel_id=None if kernel is None else KernelId(kernel),
        before=Status.PENDING,
        after=after,
        reason=reason,
        message="",
        at=0.0,
        cause="",
    )


def test_every_status_has_an_event() -> None:
    assert set(VERBS) == set(Status)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (_change(Status.PENDING, Reason.SUBMITTED), ("session_enqueued",)),
        (_change(Status.SCHEDULED), ("session_scheduled",)),
        (_change(Status.RUNNING), ("session_started",)),
        (_change(Status.TERMINATING, Reason.USER_REQUESTED), ("session_terminating",)),
        (_change(Status.TERMINATING, Reason.TASK_FINISHED), ("session_success", "session_terminating")),
        (_change(Status.TERMINATING, Reason.TASK_FAILED), ("session_failure", "session_terminating")),
        (_change(Status.TERMINATING, Reason.TASK_TIMEOUT), ("session_failure", "session_terminating")),
        (_change(Status.TERMINATED, Reason.TASK_FINISHED), ("session_terminated",)),
        (_change(Status.ERROR, Reason.AGENT_LOST), ("session_failure", "session_terminated")),
        (_change(Status.CANCELLED), ("session_cancelled",)),
        (_change(Status.TERMINATING, Reason.TASK_FINISHED, "k"), ("kernel_terminating",)),
        (_change(Status.ERROR, Reason.START_FAILED, "k"), ("kernel_terminated",)),
    ],
)
def test_names(change: StatusChange, names: tuple[str, ...]) -> None:
    assert names_of(change) == names


@given(COMMITTED)
def test_events_travel_unharmed(committed: OutboxEvent) -> None:
    events = events_of(committed)
    assert events
    for part, event in enumerate(events):
        assert event.name in ALL_EVENT_NAMES
        assert parse_event_id(event.id) == (committed.number, part)
        assert DomainEvent.from_fields(event.to_fields()) == event


@pytest.mark.parametrize("data", ["", "[]", "{}", '{"name": 1}', "no json"])
def test_foreign_entries_are_told_apart(data: str) -> None:
    with pytest.raises(DecodeError):
        DomainEvent.from_fields({"data": data})
    with pytest.raises(DecodeError):
        DomainEvent.from_fields({})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12-1", (12, 1)),
        ("12", (12, 0)),
        (" 7-0 ", (7, 0)),
        ("", None),
        ("-", None),
        ("-1", None),
        ("1-x", None),
        ("٣-0", None),
        ("9" * 20, None),
        ("1-" + "9" * 10, None),
        ("1-0\r\nX: y", None),
    ],
)
def test_what_a_client_sends_back(text: str, found: tuple[int, int] | None) -> None:
    assert parse_event_id(text) == found
