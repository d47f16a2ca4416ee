"""First in, first out."""

from __future__ import annotations

from backendai_ray.core.errors import InvalidParameter, SessionNotFound
from backendai_ray.core.ids import SessionId
from backendai_ray.core.scheduling import AgentSelection, Placement, Plan, Refusal, Snapshot

from .columns import RoomCache
from .queue_pass import QueuePass
from .selection import for_pass


class FifoPolicy:
    """Starts sessions in the order of their submission.

    ``strict`` (the default): nothing overtakes the first session that waits for room. Sessions that cannot start for
    a reason of their own (too large for any node, a start time or a dependency to come, no node of their
    architecture) hold up nobody. Without it, later sessions may use what the first one cannot.

    An instance keeps a memo between calls; use it from one thread at a time.
    """

    name = "fifo"

    def __init__(self, *, selection: AgentSelection, strict: bool = True, **unknown: object) -> None:
        """Make the policy.

        Raises:
            InvalidParameter: an option is unknown or of the wrong type.
        """
        if unknown:
            option = min(unknown)
            raise InvalidParameter(f"options.{option}: fifo knows only the option strict", field=f"options.{option}")
        if not isinstance(strict, bool):
            raise InvalidParameter(f"options.strict: {strict!r} is neither true nor false", field="options.strict")
        self._selection = selection
        self._strict = strict
        self._rooms = RoomCache()

    def decide(self, snapshot: Snapshot) -> Plan:
        """Return an ordered plan."""
        return self._begin(snapshot).run(snapshot.pending)

    def explain(self, snapshot: Snapshot, session_id: SessionId) -> Refusal | Placement:
        """Return what ``decide`` does with one session, with a reason for every node that refuses it.

        Raises:
            SessionNotFound: it is not pending in the snapshot.
        """
        outcome = self._begin(snapshot).explain(snapshot.pending, session_id)
        if outcome is None:
            raise SessionNotFound(f"session {session_id} is not waiting", session_id=session_id)
        return outcome

    def _begin(self, snapshot: Snapshot) -> QueuePass:
        room = self._rooms.open(snapshot.nodes)
        return QueuePass(
            room,
            for_pass(self._selection, room, snapshot),
            now=snapshot.now,
            still_held=frozenset(kernel.kernel_id for kernel in snapshot.running),
            strict=self._strict,
        )
