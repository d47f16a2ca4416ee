"""What the scheduler told sessions that wait."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "scheduling_history",
        sa.Column("session_id", _KEY, nullable=False),
        sa.Column("place", sa.SmallInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_scheduling_history_session_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "place", name="pk_scheduling_history"),
    )
    op.create_index("ix_scheduling_history_at", "scheduling_history", ["at"], unique=False)
