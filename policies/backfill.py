"""EASY backfill: in order of submission, and small ones meanwhile that delay nobody at the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.scheduling import AgentSelection, PendingSession, Snapshot

from .columns import Room
from .fifo import FifoPolicy
from .reservation import Ending, Forecast, Reservation


class BackfillPolicy(FifoPolicy):
    """Starts sessions of one priority in the order of their submission, and fills gaps with later ones.

    The first session that waits for room holds a reservation: the earliest time at which there is room for it if
    every session that runs is ended at its time limit. A later session may start now if it has ended by then, or if
    there is room for the first one at that time beside it. A session without a limit never ends, as far as can be
    known; where the reservation would depend on such a one, nothing goes ahead, as under ``fifo``.
    """

    name = "backfill"

    def __init__(
        self,
        *,
        selection: AgentSelection,
        preemption: Mapping[str, Any] | None = None,
        consolidation: Mapping[str, Any] | None = None,
        **unknown: object,
    ) -> None:
        """Make the policy.

        Raises:
            InvalidParameter: an option is unknown or wrong.
        """
        if unknown:
            option = min(unknown)
            raise InvalidParameter(
                f"options.{option}: backfill knows only the options consolidation and preemption",
                field=f"options.{option}",
            )
        super().__init__(selection=selection, preemption=preemption, consolidation=consolidation)
        self._forecast = Forecast()

    def _reserve(self, snapshot: Snapshot, room: Room) -> Callable[[PendingSession], Reservation | None]:
        def reserve(head: PendingSession) -> Reservation | None:
            return self._forecast.reservation(head, room, _endings(snapshot, room), snapshot.now)

        return reserve


def _endings(snapshot: Snapshot, room: Room) -> Iterator[Ending]:
    """Return the kernels with a limit: those that run, and those placed in this pass; and those that end already."""
    for kernel in snapshot.running:
        if kernel.ending:
            yield Ending(kernel.kernel_id, kernel.agent_id, snapshot.now)
        elif kernel.time_limit_s is not None:
            # One that is past its limit is being ended.
            at = max(snapshot.now, kernel.placed_at + kernel.time_limit_s)
            yield Ending(kernel.kernel_id, kernel.agent_id, at)
    limits = {kernel: session.time_limit_s for session in snapshot.pending for kernel in session.kernel_ids}
    for row, kernel_id in room.placed():
        limit = limits.get(kernel_id)
        if limit is not None:
            yield Ending(kernel_id, room.nodes[row].agent_id, snapshot.now + limit)
