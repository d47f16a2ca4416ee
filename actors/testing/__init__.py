"""Stand-ins for actors and for the store: they record what they are asked, and can be made to misbehave."""

from .agents import FakeAgent
from .clock import ManualClock
from .cluster import GROUP, OWNER, FakeCluster
from .scheduler import FakeSokovan, first_come_plan
from .store import MemoryStore

__all__ = ["GROUP", "OWNER", "FakeAgent", "FakeCluster", "FakeSokovan", "ManualClock", "MemoryStore", "first_come_plan"]
