"""The event bus: what happened, told to whoever wants to know. Nothing durable lives here; that is the store's."""

from .connection import Bus
from .embedded import EmbeddedBus
from .events import ALL_EVENT_NAMES, DomainEvent, events_of, names_of, parse_event_id
from .fleeting import PULL_PROGRESS, USAGE, Fleeting
from .groups import ConsumerGroup
from .relay import OutboxRelay
from .streams import Entry, EventStream, Gap

__all__ = [
    "ALL_EVENT_NAMES",
    "PULL_PROGRESS",
    "USAGE",
    "Bus",
    "ConsumerGroup",
    "DomainEvent",
    "EmbeddedBus",
    "Entry",
    "EventStream",
    "Fleeting",
    "Gap",
    "OutboxRelay",
    "events_of",
    "names_of",
    "parse_event_id",
]
