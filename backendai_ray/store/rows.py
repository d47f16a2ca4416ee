"""Records as rows and back; nothing here touches a database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import RowMapping

from backendai_ray.core.errors import StoreUnavailable
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.quotas import Limits, Scope, ScopeKind
from backendai_ray.core.scheduling_history import KEPT, SchedulingEntry, Verdict
from backendai_ray.core.sessions import Kernel, Reason, Session, Status
from backendai_ray.core.usage import Charge
from backendai_ray.records import DecodeError, decode, encode

from .records import (
    AgentRecord,
    GroupRecord,
    IdempotencyRecord,
    KernelLog,
    KeypairRecord,
    OutboxEvent,
    QuotaRecord,
    UsageRecord,
)
from .tables import FORMAT

Row = dict[str, Any]


def session_row(session: Session) -> Row:
    """Return the row of a session; its kernels are rows of their own."""
    spec = session.spec
    return {
        "id": spec.id,
        "name": spec.name,
        "access_key": spec.access_key,
        "domain": spec.domain,
        "project": spec.project,
        "user": spec.user,
        "status": session.status.value,
        "live": 0 if session.is_terminal else 1,
        "type": spec.type.value,
        "resource_group": spec.resource_group,
        "created_at": session.created_at,
        "terminated_at": session.terminated_at,
        "version": session.version,
        "format": FORMAT,
        "document": encode(replace(session, kernels=())).decode(),
    }


def kernel_rows(session: Session) -> list[Row]:
    """Return the rows of a session's kernels."""
    return [
        {
            "id": kernel.id,
            "session_id": session.id,
            "position": position,
            "agent_id": kernel.agent_id,
            "status": kernel.status.value,
            "document": encode(kernel).decode(),
        }
        for position, kernel in enumerate(session.kernels)
    ]


def to_session(row: RowMapping, kernel_documents: Iterable[str]) -> Session:
    """Return the session of a row and of its kernels' documents in order.

    Raises:
        StoreUnavailable: the document is newer than this code, or damaged.
    """
    if row["format"] > FORMAT:
        raise StoreUnavailable(
            f"session {row['id']} was written by a newer version (format {row['format']}, known up to {FORMAT}); "
            "upgrade backendai-ray",
            session_id=row["id"],
        )
    try:
        session = decode(row["document"], Session)
        return replace(session, kernels=tuple(decode(text, Kernel) for text in kernel_documents))
    except DecodeError as exc:
        raise StoreUnavailable(f"the record of session {row['id']} is damaged: {exc}", session_id=row["id"]) from None


def change_row(change: StatusChange) -> Row:
    """Return the row of a line of the history, but for its number and what is known of the session."""
    return {
        "session_id": change.session_id,
        "kernel_id": change.kernel_id,
        "before": change.before.value,
        "after": change.after.value,
        "reason": change.reason.value,
        "message": _storable(change.message),
        "at": change.at,
        "cause": _storable(change.cause),
    }


def to_change(row: RowMapping) -> StatusChange:
    return StatusChange(
        session_id=SessionId(row["session_id"]),
        kernel_id=None if row["kernel_id"] is None else KernelId(row["kernel_id"]),
        before=Status(row["before"]),
        after=Status(row["after"]),
        reason=Reason(row["reason"]),
        message=row["message"],
        at=row["at"],
        cause=row["cause"],
    )


def to_event(row: RowMapping) -> OutboxEvent:
    return OutboxEvent(
        number=row["number"],
        change=to_change(row),
        access_key=AccessKey(row["access_key"]),
        session_name=row["session_name"],
        domain=row["domain"],
        project=row["project"],
        user=row["user"],
    )


def log_row(log: KernelLog) -> Row:
    return _columns(log)


def idempotency_row(record: IdempotencyRecord) -> Row:
    return {**_columns(record), "answer": _storable(record.answer)}


def to_idempotency(row: RowMapping) -> IdempotencyRecord:
    return IdempotencyRecord(**dict(row))


def keypair_row(keypair: KeypairRecord) -> Row:
    return {**_columns(keypair), "is_active": int(keypair.is_active), "is_admin": int(keypair.is_admin)}


def to_keypair(row: RowMapping) -> KeypairRecord:
    values = dict(row)
    return KeypairRecord(
        **{**values, "is_active": bool(values["is_active"]), "is_admin": bool(values["is_admin"])},
    )


def agent_row(agent: AgentRecord) -> Row:
    return {**_columns(agent), "capacity": encode(agent.capacity).decode()}


def to_agent(row: RowMapping) -> AgentRecord:
    values = dict(row)
    return AgentRecord(
        **{
            **values,
            "agent_id": AgentId(values["agent_id"]),
            "resource_group": ResourceGroupName(values["resource_group"]),
            "capacity": decode(values["capacity"], dict[str, int]),
        }
    )


def group_row(group: GroupRecord) -> Row:
    return {**_columns(group), "options": encode(group.options).decode()}


def to_group(row: RowMapping) -> GroupRecord:
    values: Mapping[str, Any] = dict(row)
    return GroupRecord(**{**values, "options": decode(values["options"], dict[str, Any])})


def quota_row(quota: QuotaRecord) -> Row:
    return {"kind": quota.scope.kind.value, "name": quota.scope.name, "limits": encode(quota.limits).decode()}


def to_quota(row: RowMapping) -> QuotaRecord:
    return QuotaRecord(scope=Scope(ScopeKind(row["kind"]), row["name"]), limits=decode(row["limits"], Limits))


def to_usage(row: RowMapping) -> UsageRecord:
    account = (row["domain"], row["project"], row["user"])
    charge = Charge(account, row["slot"], row["hour"], row["amount"])
    return UsageRecord(resource_group=ResourceGroupName(row["resource_group"]), charge=charge)


def scheduling_row(entry: SchedulingEntry) -> Row:
    row = {**_columns(entry), "verdict": entry.verdict.value, "place": entry.number % KEPT}
    return {**row, "message": _storable(entry.message)}


def to_scheduling(row: RowMapping) -> SchedulingEntry:
    values = {name: value for name, value in row.items() if name != "place"}
    verdict = Verdict(values["verdict"])
    return SchedulingEntry(**{**values, "session_id": SessionId(values["session_id"]), "verdict": verdict})


def _columns(record: Any) -> Row:
    return {part.name: getattr(record, part.name) for part in fields(record)}


def _storable(text: str) -> str:
    """Return text that every database takes: PostgreSQL has no NUL, neither has lone surrogates."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
