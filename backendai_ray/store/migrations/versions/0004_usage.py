"""Usage: what each user's sessions held, hour by hour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("resource_group", _KEY, nullable=False),
        sa.Column("domain", _KEY, nullable=False),
        sa.Column("project", _KEY, nullable=False),
        sa.Column("user", _KEY, nullable=False),
        sa.Column("slot", _KEY, nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("resource_group", "domain", "project", "user", "slot", "hour", name="pk_usage"),
    )
    op.create_index("ix_usage_hour", "usage", ["hour"], unique=False)
