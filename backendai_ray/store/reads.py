"""Every question the store answers, as a function over a connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, func, select

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AccessKey, AgentId, KernelId, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.scheduling_history import SchedulingEntry
from backendai_ray.core.sessions import TERMINAL, Kernel, Session, Status
from backendai_ray.core.usage import HOUR_S
from backendai_ray.records import decode

from . import rows, tables
from .records import AgentRecord, GroupRecord, IdempotencyRecord, KeypairRecord, OutboxEvent, QuotaRecord, UsageRecord

CHUNK = 500
"""Values of one IN list; SQLite takes 32,766 in all."""

MIN_PREFIX = 8
"""Characters of an id that may stand for the whole of it."""

_SESSION = tables.sessions.c
_KERNEL = tables.kernels.c
_LIVE = _SESSION.live == 1
_ENDED = frozenset(status.value for status in TERMINAL)


def live_sessions(connection: Connection) -> list[Session]:
    """Return every session that is not terminal, oldest first."""
    found = _rows(connection, select(tables.sessions).where(_LIVE).order_by(_SESSION.created_at, _SESSION.id))
    kernels = (
        select(_KERNEL.session_id, _KERNEL.document)
        .join(tables.sessions, _SESSION.id == _KERNEL.session_id)
        .where(_LIVE)
        .order_by(_KERNEL.session_id, _KERNEL.position)
    )
    return _join(found, _rows(connection, kernels))


def recently_ended(connection: Connection, limit: int) -> list[Session]:
    """Return the newest sessions that have ended, newest first, without their kernels."""
    newest = select(tables.sessions).where(_SESSION.live == 0).order_by(_SESSION.created_at.desc(), _SESSION.id.desc())
    return [rows.to_session(row, ()) for row in _rows(connection, newest.limit(limit))]


def session(connection: Connection, session_id: str) -> Session | None:
    """Return the session of that id."""
    return _first(connection, select(tables.sessions).where(_SESSION.id == session_id))


def find(connection: Connection, access_key: AccessKey | None, text: str) -> Session | None:
    """Return the session that a person means: live by name, by id, newest ended of that name, by id prefix.

    Args:
        connection: Where to look.
        access_key: Whose; ``None``: anybody's.
        text: A name, an id, or the first 8 and more characters of an id.

    Raises:
        InvalidParameter: several ids begin like this.
    """
    owner: list[ColumnElement[bool]] = [] if access_key is None else [_SESSION.access_key == access_key]
    newest = (_SESSION.created_at.desc(), _SESSION.id.desc())
    everything = select(tables.sessions).where(*owner)
    # A NUL is in no name and no id, and PostgreSQL refuses it; so do lone surrogates.
    if "\0" in text or not text.isprintable():
        return None
    for query in (
        everything.where(_LIVE, _SESSION.name == text).order_by(*newest).limit(1),
        everything.where(_SESSION.id == text.lower()),
        everything.where(_SESSION.name == text).order_by(*newest).limit(1),
    ):
        found = _first(connection, query)
        if found is not None:
            return found
    prefix = text.lower()
    if len(prefix) < MIN_PREFIX or prefix.strip("0123456789abcdef-"):
        return None
    like_this = everything.where(_SESSION.id >= prefix, _SESSION.id < prefix + "g").limit(2)
    several = _rows(connection, like_this)
    if len(several) > 1:
        raise InvalidParameter(f"several sessions' ids begin with {prefix!r}; give more of it", field="session")
    return _load(connection, several)[0] if several else None


def page(
    connection: Connection, access_key: AccessKey | None, statuses: Sequence[str], limit: int, offset: int
) -> tuple[list[Session], int]:
    """Return some sessions, newest first, and how many there are in all."""
    conditions: list[ColumnElement[bool]] = []
    if access_key is not None:
        conditions.append(_SESSION.access_key == access_key)
    if statuses:
        conditions.append(_SESSION.status.in_(sorted(set(statuses))))
        if not _ENDED.intersection(statuses):
            conditions.append(_LIVE)  # lets the database use the small index of live sessions
    total = connection.execute(select(func.count()).select_from(tables.sessions).where(*conditions)).scalar_one()
    if limit <= 0 or offset >= total:
        return [], total
    # Ids first: an index has them in order, so no document is read that is not on the page.
    ids = select(_SESSION.id).where(*conditions).order_by(_SESSION.created_at.desc(), _SESSION.id.desc())
    on_page = connection.execute(ids.limit(limit).offset(max(0, offset))).scalars().all()
    found = [row for part in chunks(on_page) for row in _rows(connection, _of_ids(part))]
    found.sort(key=lambda row: (row["created_at"], row["id"]), reverse=True)
    return _load(connection, found), total


def history(connection: Connection, session_id: str) -> list[StatusChange]:
    """Return a session's status history, oldest first."""
    lines = tables.history
    found = select(lines).where(lines.c.session_id == session_id).order_by(lines.c.number)
    return [rows.to_change(row) for row in _rows(connection, found)]


def scheduling_history(connection: Connection, session_id: str) -> list[SchedulingEntry]:
    """Return what the scheduler told a session, oldest first."""
    table = tables.scheduling_history
    query = select(table).where(table.c.session_id == session_id).order_by(table.c.number)
    return [rows.to_scheduling(row) for row in _rows(connection, query)]


def last_scheduling(connection: Connection, session_ids: Sequence[str]) -> dict[SessionId, SchedulingEntry]:
    """Return the last entry of each of the sessions that have one."""
    table = tables.scheduling_history
    found: dict[SessionId, SchedulingEntry] = {}
    for ids in chunks(session_ids):
        newest = (
            select(table.c.session_id, func.max(table.c.number).label("number"))
            .where(table.c.session_id.in_(ids))
            .group_by(table.c.session_id)
            .subquery()
        )
        is_newest = (table.c.session_id == newest.c.session_id) & (table.c.number == newest.c.number)
        for row in _rows(connection, select(table).join(newest, is_newest)):
            entry = rows.to_scheduling(row)
            found[entry.session_id] = entry
    return found


def kernel_log(connection: Connection, kernel_id: str) -> bytes | None:
    """Return what was kept of an ended kernel's log."""
    logs = tables.kernel_logs
    log = connection.execute(select(logs.c.log).where(logs.c.kernel_id == kernel_id)).scalar_one_or_none()
    return None if log is None else bytes(log)


def kernels_on(connection: Connection, agent_id: AgentId, statuses: Sequence[Status]) -> list[tuple[SessionId, Kernel]]:
    """Return the kernels on a node that are in one of the statuses."""
    wanted = [status.value for status in statuses]
    query = select(_KERNEL.session_id, _KERNEL.document).where(_KERNEL.agent_id == agent_id, _KERNEL.status.in_(wanted))
    found = _rows(connection, query.order_by(_KERNEL.id))
    return [(SessionId(row["session_id"]), decode(row["document"], Kernel)) for row in found]


def kernel_session(connection: Connection, kernel_id: KernelId) -> SessionId | None:
    """Return the session that a kernel belongs to."""
    return connection.execute(select(_KERNEL.session_id).where(_KERNEL.id == kernel_id)).scalar_one_or_none()


def idempotent(connection: Connection, access_key: AccessKey, key: str) -> IdempotencyRecord | None:
    """Return what was recorded under the key; it may have expired, the caller knows the time."""
    table = tables.idempotency
    query = select(table).where(table.c.access_key == access_key, table.c.key == key)
    return next((rows.to_idempotency(row) for row in _rows(connection, query)), None)


def keypair(connection: Connection, access_key: str) -> KeypairRecord | None:
    table = tables.keypairs
    query = select(table).where(table.c.access_key == access_key)
    return next((rows.to_keypair(row) for row in _rows(connection, query)), None)


def keypairs(connection: Connection) -> list[KeypairRecord]:
    query = select(tables.keypairs).order_by(tables.keypairs.c.access_key)
    return [rows.to_keypair(row) for row in _rows(connection, query)]


def agents(connection: Connection) -> list[AgentRecord]:
    query = select(tables.agents).order_by(tables.agents.c.agent_id)
    return [rows.to_agent(row) for row in _rows(connection, query)]


def groups(connection: Connection) -> list[GroupRecord]:
    query = select(tables.resource_groups).order_by(tables.resource_groups.c.name)
    return [rows.to_group(row) for row in _rows(connection, query)]


def quotas(connection: Connection) -> list[QuotaRecord]:
    query = select(tables.quotas).order_by(tables.quotas.c.kind, tables.quotas.c.name)
    return [quota for row in _rows(connection, query) if (quota := rows.to_quota(row)).limits]


def usage(connection: Connection, since: float) -> list[UsageRecord]:
    """Return what was used in hours that ended after ``since``."""
    query = select(tables.usage).where(tables.usage.c.hour > since - HOUR_S).order_by(*tables.usage.primary_key)
    return [rows.to_usage(row) for row in _rows(connection, query)]


def outbox(connection: Connection, after: int, limit: int) -> list[OutboxEvent]:
    """Return committed events behind ``after`` that are not trimmed yet, in order."""
    shipped = select(tables.meta.c.shipped_event).scalar_subquery()
    number = tables.history.c.number
    query = select(tables.history).where(number > after, number > shipped).order_by(number).limit(limit)
    return [rows.to_event(row) for row in _rows(connection, query)]


def dependencies(connection: Connection, session_id: str) -> list[SessionId]:
    """Return what a session waits for."""
    table = tables.dependencies
    query = select(table.c.depends_on).where(table.c.session_id == session_id).order_by(table.c.depends_on)
    return [SessionId(found) for found in connection.execute(query).scalars()]


def dependents(connection: Connection, session_id: str) -> list[SessionId]:
    """Return what waits for a session."""
    table = tables.dependencies
    query = select(table.c.session_id).where(table.c.depends_on == session_id).order_by(table.c.session_id)
    return [SessionId(found) for found in connection.execute(query).scalars()]


def chunks(values: Iterable[Any]) -> Iterable[list[Any]]:
    """Return the distinct values in lists that fit one statement."""
    distinct = list(dict.fromkeys(values))
    return [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]


def _of_ids(ids: Sequence[str]) -> Select[Any]:
    return select(tables.sessions).where(_SESSION.id.in_(ids))


def _rows(connection: Connection, query: Select[Any]) -> Sequence[RowMapping]:
    return connection.execute(query).mappings().all()


def _first(connection: Connection, query: Select[Any]) -> Session | None:
    found = _load(connection, _rows(connection, query))
    return found[0] if found else None


def _load(connection: Connection, found: Sequence[RowMapping]) -> list[Session]:
    kernels: list[RowMapping] = []
    for ids in chunks(row["id"] for row in found):
        query = select(_KERNEL.session_id, _KERNEL.document).where(_KERNEL.session_id.in_(ids))
        kernels.extend(_rows(connection, query.order_by(_KERNEL.session_id, _KERNEL.position)))
    return _join(found, kernels)


def _join(found: Sequence[RowMapping], kernels: Sequence[RowMapping]) -> list[Session]:
    documents: dict[str, list[str]] = {}
    for row in kernels:
        documents.setdefault(row["session_id"], []).append(row["document"])
    return [rows.to_session(row, documents.get(row["id"], ())) for row in found]
