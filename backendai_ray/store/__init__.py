"""Durable state: one interface, SQLite by default and PostgreSQL by URL."""

from .records import (
    AgentRecord,
    Batch,
    GroupRecord,
    IdempotencyRecord,
    KernelLog,
    KeypairRecord,
    OutboxEvent,
    QuotaRecord,
    UsageRecord,
)
from .store import Store

__all__ = [
    "AgentRecord",
    "Batch",
    "GroupRecord",
    "IdempotencyRecord",
    "KernelLog",
    "KeypairRecord",
    "OutboxEvent",
    "QuotaRecord",
    "Store",
    "UsageRecord",
]
