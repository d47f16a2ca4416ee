"""Every table of the store. The Manager is the only writer; ``docs/reference/store.md`` says the same for people.

A session is a few columns that are searched for, and one JSON document with the whole record but its kernels;
kernels are rows of their own because "what is on this node" is asked too. A change of this module needs a new
migration; a test compares the two.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

FORMAT: Final = 1
"""Of the JSON documents; a reader refuses what is newer."""

metadata = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s"},
)

# Bytewise order on every database, so that a search by id prefix is a range of the index.
Key = String().with_variant(String(collation="C"), "postgresql")

meta = Table(
    "meta",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("identity", String, nullable=False),
    Column("writer", String, nullable=False),
    Column("commits", BigInteger, nullable=False),
    Column("last_event", BigInteger, nullable=False),
    Column("shipped_event", BigInteger, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", Key, nullable=False),
    Column("access_key", Key, nullable=False),
    Column("domain", String, nullable=False),
    Column("project", String, nullable=False),
    Column("user", String, nullable=False),
    Column("status", Key, nullable=False),
    Column("live", SmallInteger, nullable=False),
    Column("type", String, nullable=False),
    Column("resource_group", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("terminated_at", Double),
    Column("version", BigInteger, nullable=False),
    Column("format", SmallInteger, nullable=False),
    Column("document", Text, nullable=False),
)
live_name_index = Index(
    "uq_sessions_live_name",
    sessions.c.access_key,
    sessions.c.name,
    unique=True,
    sqlite_where=sessions.c.live == 1,
    postgresql_where=sessions.c.live == 1,
)
Index(
    "ix_sessions_live",
    sessions.c.created_at,
    sessions.c.id,
    sqlite_where=sessions.c.live == 1,
    postgresql_where=sessions.c.live == 1,
)
Index("ix_sessions_created", sessions.c.created_at, sessions.c.id)
Index("ix_sessions_status", sessions.c.status, sessions.c.created_at, sessions.c.id)
Index("ix_sessions_owner", sessions.c.access_key, sessions.c.created_at, sessions.c.id)
Index("ix_sessions_owner_status", sessions.c.access_key, sessions.c.status, sessions.c.created_at, sessions.c.id)
Index("ix_sessions_owner_name", sessions.c.access_key, sessions.c.name, sessions.c.created_at, sessions.c.id)

kernels = Table(
    "kernels",
    metadata,
    Column("id", Key, primary_key=True),
    Column("session_id", Key, ForeignKey("sessions.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("agent_id", Key),
    Column("status", Key, nullable=False),
    Column("document", Text, nullable=False),
)
Index("ix_kernels_session", kernels.c.session_id, kernels.c.position)
Index("ix_kernels_agent", kernels.c.agent_id, kernels.c.status)

dependencies = Table(
    "dependencies",
    metadata,
    Column("session_id", Key, ForeignKey("sessions.id"), primary_key=True),
    Column("depends_on", Key, primary_key=True),
)
Index("ix_dependencies_depends_on", dependencies.c.depends_on)

history = Table(
    "history",
    metadata,
    # Given by the writer, without gaps: the same number is the event's number in the outbox.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("session_id", Key, ForeignKey("sessions.id"), nullable=False),
    Column("kernel_id", Key),
    Column("before", String, nullable=False),
    Column("after", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("cause", String, nullable=False),
    Column("access_key", String, nullable=False),
    Column("session_name", String, nullable=False),
    Column("domain", String, nullable=False),
    Column("project", String, nullable=False),
    Column("user", String, nullable=False),
)
Index("ix_history_session", history.c.session_id, history.c.number)

kernel_logs = Table(
    "kernel_logs",
    metadata,
    Column("kernel_id", Key, ForeignKey("kernels.id"), primary_key=True),
    Column("session_id", Key, nullable=False),
    Column("log", LargeBinary, nullable=False),
    Column("at", Double, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("access_key", Key, primary_key=True),
    Column("key", Key, primary_key=True),
    Column("fingerprint", String, nullable=False),
    Column("session_id", Key),
    Column("answer", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)
Index("ix_idempotency_expires", idempotency.c.expires_at)

keypairs = Table(
    "keypairs",
    metadata,
    Column("access_key", Key, primary_key=True),
    Column("secret_key", String, nullable=False),
    Column("user", String, nullable=False),
    Column("domain", String, nullable=False),
    Column("project", String, nullable=False),
    Column("is_active", SmallInteger, nullable=False),
    Column("is_admin", SmallInteger, nullable=False),
    Column("created_at", Double, nullable=False),
)

agents = Table(
    "agents",
    metadata,
    Column("agent_id", Key, primary_key=True),
    Column("resource_group", String, nullable=False),
    Column("first_contact", Double, nullable=False),
    Column("lost_at", Double),
    Column("incarnation", String, nullable=False),
    Column("architecture", String, nullable=False),
    Column("backend", String, nullable=False),
    Column("capacity", Text, nullable=False),
)

resource_groups = Table(
    "resource_groups",
    metadata,
    Column("name", Key, primary_key=True),
    Column("policy", String, nullable=False),
    Column("selection", String, nullable=False),
    Column("options", Text, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("resource_group", Key, primary_key=True),
    Column("domain", Key, primary_key=True),
    Column("project", Key, primary_key=True),
    Column("user", Key, primary_key=True),
    Column("slot", Key, primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("amount", Double, nullable=False),
)
Index("ix_usage_hour", usage.c.hour)

quotas = Table(
    "quotas",
    metadata,
    Column("kind", Key, primary_key=True),
    Column("name", Key, primary_key=True),
    Column("limits", Text, nullable=False),
)

scheduling_history = Table(
    "scheduling_history",
    metadata,
    Column("session_id", Key, ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    # The number modulo what is kept of a session: a new entry takes the place of the oldest one.
    Column("place", SmallInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, nullable=False),
    Column("verdict", String, nullable=False),
    Column("code", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("cause", String, nullable=False),
)
Index("ix_scheduling_history_at", scheduling_history.c.at)
