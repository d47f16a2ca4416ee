"""The first schema: sessions, kernels, their history and logs, and what stands around them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("agent_id", _KEY, nullable=False),
        sa.Column("resource_group", sa.String(), nullable=False),
        sa.Column("first_contact", sa.Double(), nullable=False),
        sa.Column("lost_at", sa.Double(), nullable=True),
        sa.Column("incarnation", sa.String(), nullable=False),
        sa.Column("architecture", sa.String(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("capacity", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agents"),
    )
    op.create_table(
        "idempotency",
        sa.Column("access_key", _KEY, nullable=False),
        sa.Column("key", _KEY, nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("session_id", _KEY, nullable=True),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("access_key", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_expires", "idempotency", ["expires_at"], unique=False)
    op.create_table(
        "keypairs",
        sa.Column("access_key", _KEY, nullable=False),
        sa.Column("secret_key", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("is_active", sa.SmallInteger(), nullable=False),
        sa.Column("is_admin", sa.SmallInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("access_key", name="pk_keypairs"),
    )
    op.create_table(
        "meta",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("writer", sa.String(), nullable=False),
        sa.Column("commits", sa.BigInteger(), nullable=False),
        sa.Column("last_event", sa.BigInteger(), nullable=False),
        sa.Column("shipped_event", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_meta"),
    )
    op.create_table(
        "resource_groups",
        sa.Column("name", _KEY, nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("selection", sa.String(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_resource_groups"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("name", _KEY, nullable=False),
        sa.Column("access_key", _KEY, nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("status", _KEY, nullable=False),
        sa.Column("live", sa.SmallInteger(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("resource_group", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("terminated_at", sa.Double(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.SmallInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_created", "sessions", ["created_at", "id"], unique=False)
    op.create_index(
        "ix_sessions_live",
        "sessions",
        ["created_at", "id"],
        unique=False,
        sqlite_where=sa.text("live = 1"),
        postgresql_where=sa.text("live = 1"),
    )
    op.create_index("ix_sessions_owner", "sessions", ["access_key", "created_at", "id"], unique=False)
    op.create_index("ix_sessions_owner_name", "sessions", ["access_key", "name", "created_at", "id"], unique=False)
    op.create_index("ix_sessions_owner_status", "sessions", ["access_key", "status", "created_at", "id"], unique=False)
    op.create_index("ix_sessions_status", "sessions", ["status", "created_at", "id"], unique=False)
    op.create_index(
        "uq_sessions_live_name",
        "sessions",
        ["access_key", "name"],
        unique=True,
        sqlite_where=sa.text("live = 1"),
        postgresql_where=sa.text("live = 1"),
    )
    op.create_table(
        "dependencies",
        sa.Column("session_id", _KEY, nullable=False),
        sa.Column("depends_on", _KEY, nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_dependencies_session_id"),
        sa.PrimaryKeyConstraint("session_id", "depends_on", name="pk_dependencies"),
    )
    op.create_index("ix_dependencies_depends_on", "dependencies", ["depends_on"], unique=False)
    op.create_table(
        "history",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("session_id", _KEY, nullable=False),
        sa.Column("kernel_id", _KEY, nullable=True),
        sa.Column("before", sa.String(), nullable=False),
        sa.Column("after", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("access_key", sa.String(), nullable=False),
        sa.Column("session_name", sa.String(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_history_session_id"),
        sa.PrimaryKeyConstraint("number", name="pk_history"),
    )
    op.create_index("ix_history_session", "history", ["session_id", "number"], unique=False)
    op.create_table(
        "kernels",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("session_id", _KEY, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("agent_id", _KEY, nullable=True),
        sa.Column("status", _KEY, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_kernels_session_id"),
        sa.PrimaryKeyConstraint("id", name="pk_kernels"),
    )
    op.create_index("ix_kernels_agent", "kernels", ["agent_id", "status"], unique=False)
    op.create_index("ix_kernels_session", "kernels", ["session_id", "position"], unique=False)
    op.create_table(
        "kernel_logs",
        sa.Column("kernel_id", _KEY, nullable=False),
        sa.Column("session_id", _KEY, nullable=False),
        sa.Column("log", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["kernel_id"], ["kernels.id"], name="fk_kernel_logs_kernel_id"),
        sa.PrimaryKeyConstraint("kernel_id", name="pk_kernel_logs"),
    )
    op.execute(
        "INSERT INTO meta (id, identity, writer, commits, last_event, shipped_event) VALUES (1, '', '', 0, 0, 0)"
    )
