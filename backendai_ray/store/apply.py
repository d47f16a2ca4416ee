"""Writing a group of batches in one transaction: judge each against what is stored, then write what passed, at once.

The judgement needs two or three reads for the whole group and keeps book of what earlier batches of the group will
have written, so that a batch which cannot be committed fails alone and costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, bindparam, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from backendai_ray.core.errors import BackendError, Conflict, IdempotencyMismatch, InternalError, NameInUse
from backendai_ray.core.sessions import Session

from . import reads, rows, tables
from .records import Batch, UsageRecord

_Row = rows.Row
_OwnedName = tuple[str, str]
_UsageKey = tuple[str, str, str, str, str, int]


@dataclass(slots=True)
class _Known:
    """A session as it is stored, or as an earlier batch of the group will have stored it."""

    version: int
    live: bool
    context: _Row
    """The columns that its history lines repeat."""
    is_new: bool = False

    @property
    def name(self) -> _OwnedName:
        return self.context["access_key"], self.context["session_name"]


@dataclass(slots=True)
class _SessionRows:
    """A session as it will be written."""

    is_new: bool
    row: _Row
    kernels: list[_Row]
    waits_for: tuple[str, ...]


@dataclass(slots=True)
class GroupWrite:
    """What a group of batches comes down to."""

    errors: list[BackendError | None] = field(default_factory=list)
    """By batch; ``None`` where it is written."""
    sessions: dict[str, _SessionRows] = field(default_factory=dict)
    """The last version of each."""
    history: list[_Row] = field(default_factory=list)
    records: dict[Table, dict[Any, _Row]] = field(default_factory=dict)
    """Other tables: primary key → row."""
    usage: dict[_UsageKey, float] = field(default_factory=dict)
    """What is added to the usage that is stored."""


def judge(connection: Connection, batches: Sequence[Batch], last_event: int) -> GroupWrite:
    """Return what to write for the batches that can be committed, and why the others cannot."""
    book = _Book(connection, batches)
    group = GroupWrite()
    for batch in batches:
        try:
            judged = book.judge(batch)
        except BackendError as exc:
            group.errors.append(exc)
            continue
        except (TypeError, ValueError) as exc:  # a record that JSON cannot hold, such as a lone surrogate in a string
            group.errors.append(InternalError(f"a record cannot be stored: {exc}"))
            continue
        group.errors.append(None)
        book.admit(judged)
        _take(group, judged, last_event + len(group.history))
    return group


def write(connection: Connection, group: GroupWrite) -> None:
    """Write what was judged; the caller owns the transaction."""
    _write_sessions(connection, list(group.sessions.values()))
    if group.history:
        connection.execute(tables.history.insert(), group.history)
    for table in _RECORD_TABLES:
        _upsert(connection, table, list(group.records.get(table, {}).values()))
    names = [column.name for column in tables.usage.primary_key]
    used = [{**dict(zip(names, key, strict=True)), "amount": amount} for key, amount in sorted(group.usage.items())]
    _upsert(connection, tables.usage, used, added=("amount",))


_RECORD_TABLES = (
    tables.kernel_logs,
    tables.idempotency,
    tables.keypairs,
    tables.agents,
    tables.resource_groups,
    tables.quotas,
    tables.scheduling_history,
)


@dataclass(slots=True)
class _Judged:
    """One batch, checked and turned into rows."""

    sessions: dict[str, _Known]
    written: dict[str, _SessionRows]
    freed: set[_OwnedName]
    history: list[_Row]
    records: list[tuple[Table, Any, _Row]]
    usage: tuple[UsageRecord, ...] = ()


class _Book:
    """What is stored of everything the group touches, kept up to date while the group is judged."""

    def __init__(self, connection: Connection, batches: Sequence[Batch]) -> None:
        self._sessions = _stored_sessions(connection, batches)
        self._names = _stored_names(connection, self._wanted_names(batches))
        self._keys = _stored_keys(connection, batches)

    def _wanted_names(self, batches: Sequence[Batch]) -> Iterable[_OwnedName]:
        for batch in batches:
            for session in batch.sessions:
                known = self._sessions.get(session.id)
                name = (str(session.spec.access_key), session.spec.name)
                if not session.is_terminal and (known is None or not known.live or known.name != name):
                    yield name

    def judge(self, batch: Batch) -> _Judged:
        """Raises what keeps the batch from being committed; changes nothing."""
        judged = _Judged({}, {}, set(), [], [])
        taken: dict[_OwnedName, str] = {}
        for session in batch.sessions:
            self._judge_session(session, judged, taken)
        for change in batch.changes:
            known = judged.sessions.get(change.session_id) or self._sessions.get(change.session_id)
            if known is None:
                raise Conflict(f"a change of the unknown session {change.session_id}", session_id=change.session_id)
            judged.history.append({**rows.change_row(change), **known.context})
        for entry in batch.scheduling:
            if entry.session_id not in self._sessions:
                raise Conflict(f"an entry of the unknown session {entry.session_id}", session_id=entry.session_id)
        for record in batch.idempotency:
            known_key = self._keys.get((record.access_key, record.key))
            if known_key is not None and known_key["expires_at"] > record.created_at:
                _refuse_repetition(record.fingerprint, known_key)
            judged.records.append((tables.idempotency, (record.access_key, record.key), rows.idempotency_row(record)))
        judged.records.extend(_plain_records(batch))
        judged.usage = batch.usage
        return judged

    def _judge_session(self, session: Session, judged: _Judged, taken: dict[_OwnedName, str]) -> None:
        known = judged.sessions.get(session.id) or self._sessions.get(session.id)
        if known is not None and session.version <= known.version:
            raise Conflict(
                f"session {session.id} is stored in version {known.version}; version {session.version} is not newer",
                session_id=session.id,
                stored=known.version,
                version=session.version,
            )
        now = _Known(session.version, not session.is_terminal, _context(session), known is None or known.is_new)
        if known is not None and known.live and (not now.live or known.name != now.name):
            judged.freed.add(known.name)
            taken.pop(known.name, None)
        if now.live:
            holder = taken.get(now.name)
            if holder is None and now.name not in judged.freed:
                holder = self._names.get(now.name)
            if holder not in (None, session.id):
                raise NameInUse(
                    f"a live session of yours is named {session.spec.name!r} already",
                    name=session.spec.name,
                    session_id=holder,
                )
            taken[now.name] = session.id
        judged.sessions[session.id] = now
        judged.written[session.id] = _SessionRows(
            is_new=now.is_new,
            row=rows.session_row(session),
            kernels=rows.kernel_rows(session),
            waits_for=tuple(dict.fromkeys(session.spec.depends_on)),
        )

    def admit(self, judged: _Judged) -> None:
        """Take a batch that passed into the book."""
        self._sessions.update(judged.sessions)
        for name in judged.freed:
            self._names.pop(name, None)
        self._names.update({known.name: key for key, known in judged.sessions.items() if known.live})
        self._keys.update({key: row for table, key, row in judged.records if table is tables.idempotency})


def _context(session: Session) -> _Row:
    spec = session.spec
    return {
        "access_key": str(spec.access_key),
        "session_name": spec.name,
        "domain": spec.domain,
        "project": spec.project,
        "user": spec.user,
    }


def _refuse_repetition(fingerprint: str, known: _Row) -> None:
    details = {"idempotency_key": known["key"], "session_id": known["session_id"]}
    if known["fingerprint"] != fingerprint:
        raise IdempotencyMismatch(**details)
    raise Conflict("this request was carried out already", **details)


def _plain_records(batch: Batch) -> Iterable[tuple[Table, Any, _Row]]:
    for log in batch.kernel_logs:
        yield tables.kernel_logs, log.kernel_id, rows.log_row(log)
    for keypair in batch.keypairs:
        yield tables.keypairs, keypair.access_key, rows.keypair_row(keypair)
    for agent in batch.agents:
        yield tables.agents, agent.agent_id, rows.agent_row(agent)
    for group in batch.groups:
        yield tables.resource_groups, group.name, rows.group_row(group)
    for quota in batch.quotas:
        yield tables.quotas, quota.scope, rows.quota_row(quota)
    for entry in batch.scheduling:
        row = rows.scheduling_row(entry)
        yield tables.scheduling_history, (entry.session_id, row["place"]), row


def _take(group: GroupWrite, judged: _Judged, last_event: int) -> None:
    group.sessions.update(judged.written)
    group.history.extend({"number": last_event + n, **row} for n, row in enumerate(judged.history, 1))
    for table, key, row in judged.records:
        group.records.setdefault(table, {})[key] = row
    for used in judged.usage:
        usage_key = (used.resource_group, *used.charge.account, used.charge.slot, used.charge.hour)
        group.usage[usage_key] = group.usage.get(usage_key, 0.0) + used.charge.amount


def _stored_sessions(connection: Connection, batches: Sequence[Batch]) -> dict[str, _Known]:
    table = tables.sessions
    columns = (table.c.id, table.c.version, table.c.live, table.c.access_key, table.c.name, table.c.domain)
    wanted = [s.id for batch in batches for s in batch.sessions]
    wanted += [change.session_id for batch in batches for change in batch.changes]
    wanted += [entry.session_id for batch in batches for entry in batch.scheduling]
    found: dict[str, _Known] = {}
    for ids in reads.chunks(wanted):
        query = select(*columns, table.c.project, table.c.user).where(table.c.id.in_(ids))
        for row in connection.execute(query).mappings():
            context = {
                "access_key": row["access_key"],
                "session_name": row["name"],
                "domain": row["domain"],
                "project": row["project"],
                "user": row["user"],
            }
            found[row["id"]] = _Known(row["version"], row["live"] == 1, context)
    return found


def _stored_names(connection: Connection, wanted: Iterable[_OwnedName]) -> dict[_OwnedName, str]:
    table = tables.sessions
    found: dict[_OwnedName, str] = {}
    for names in reads.chunks(wanted):
        query = select(table.c.access_key, table.c.name, table.c.id).where(
            table.c.live == 1, tuple_(table.c.access_key, table.c.name).in_(names)
        )
        for row in connection.execute(query):
            found[row[0], row[1]] = row[2]
    return found


def _stored_keys(connection: Connection, batches: Sequence[Batch]) -> dict[_OwnedName, _Row]:
    table = tables.idempotency
    found: dict[_OwnedName, _Row] = {}
    for keys in reads.chunks((r.access_key, r.key) for batch in batches for r in batch.idempotency):
        query = select(table).where(tuple_(table.c.access_key, table.c.key).in_(keys))
        found.update({(r["access_key"], r["key"]): dict(r) for r in connection.execute(query).mappings()})
    return found


_CHANGING = ("name", "status", "live", "terminated_at", "version", "format", "document")
_UPDATE_SESSION = (
    update(tables.sessions)
    .where(tables.sessions.c.id == bindparam("of_id"))
    .values({name: bindparam(f"new_{name}") for name in _CHANGING})
)


def _write_sessions(connection: Connection, written: Sequence[_SessionRows]) -> None:
    new = [session for session in written if session.is_new]
    changed = [session for session in written if not session.is_new]
    changed.sort(key=lambda session: int(session.row["live"]))  # names are let go before they are taken
    if changed:
        values = [{"of_id": s.row["id"], **{f"new_{name}": s.row[name] for name in _CHANGING}} for s in changed]
        connection.execute(_UPDATE_SESSION, values)
        _upsert(connection, tables.kernels, [row for session in changed for row in session.kernels])
    if new:
        connection.execute(tables.sessions.insert(), [session.row for session in new])
    kernels = [row for session in new for row in session.kernels]
    if kernels:
        connection.execute(tables.kernels.insert(), kernels)
    waits = [{"session_id": s.row["id"], "depends_on": other} for s in new for other in s.waits_for]
    if waits:
        connection.execute(tables.dependencies.insert(), waits)


def _upsert(connection: Connection, table: Table, values: Sequence[_Row], *, added: Sequence[str] = ()) -> None:
    """Write rows over those of the same key; the columns ``added`` are added to what is there."""
    if not values:
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table)
    keys = [column.name for column in table.primary_key]
    fresh: dict[str, ColumnElement[Any]] = {
        column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys
    }
    fresh.update({name: table.c[name] + statement.excluded[name] for name in added})
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=fresh), values)


def sweep_idempotency(connection: Connection, now: float) -> int:
    """Delete what has expired; returns how many."""
    return connection.execute(delete(tables.idempotency).where(tables.idempotency.c.expires_at <= now)).rowcount


def sweep_usage(connection: Connection, before: float) -> int:
    """Delete usage that nobody looks back at; returns how many rows."""
    return connection.execute(delete(tables.usage).where(tables.usage.c.hour < before)).rowcount


def sweep_scheduling(connection: Connection, before: float) -> int:
    """Delete what the scheduler told sessions before that time; returns how much."""
    return connection.execute(delete(tables.scheduling_history).where(tables.scheduling_history.c.at < before)).rowcount


def trim_outbox(connection: Connection, upto: int) -> None:
    """Events up to this number need not be shipped again; the cursor never goes back."""
    meta = tables.meta
    connection.execute(update(meta).where(meta.c.shipped_event < upto).values(shipped_event=upto))
