"""Why a session waits, since when it is its turn and when it may start: what ``explain`` and a dry run answer with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .scheduling import NodeRefusal, Placement, Refusal


class StartBasis(StrEnum):
    """What an estimated start rests on."""

    NOW = "now"
    """There is room: the next pass places it."""
    ENDING = "sessions-are-ending"
    """There is room as soon as sessions are gone that are being ended, for it or anyway."""
    START_TIME = "start-time"
    """A start time that sessions asked for."""
    TIME_LIMITS = "time-limits"
    """Sessions that run, or start before it, end at their time limits at the latest."""
    PREDICTED = "predicted"
    """As well sessions without a time limit, which run as long as their owners' last ones did."""
    UNKNOWN = "unknown"
    """It cannot be known; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEstimate:
    """When a session may start if nothing new is submitted; times are Unix seconds."""

    basis: StartBasis
    at: float | None = None
    """``None``: not known."""
    not_before: float | None = None
    """Where it is not known: how far was looked ahead in vain."""
    message: str = ""
    """A sentence for the person who waits."""


class Fragmentation(StrEnum):
    """Whether what is free would be enough if it were in one piece."""

    NONE = "none"
    WITHIN_NODE = "within-node"
    """A node has enough in all, but not on one device, or not in pieces of the right size."""
    ACROSS_NODES = "across-nodes"
    """All nodes together have enough, but none of them alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What the policy does with one session, and all that a person wants to know about it."""

    outcome: Refusal | Placement
    position: int | None = None
    """Its place in the order in which the policy tries the sessions that wait, from 1; ``None``: not told."""
    waiting: int = 0
    """How many sessions wait in the resource group, this one included."""
    closest: NodeRefusal | None = None
    """The node that lacks least, where room is what is missing."""
    fragmentation: Fragmentation = Fragmentation.NONE
    estimate: StartEstimate
    policy: str = ""
    warning: str = ""
    """Why another policy than the configured one decides; empty when it does not."""
