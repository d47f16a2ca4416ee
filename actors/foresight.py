"""The future of a resource group, worked out for explanations: beside the scheduler, and never in its way.

It has a policy of its own, made like the scheduler's, so that a question may take its time while passes go on; and a
budget, so that it does not take more of the process than that. The future of one world answers every question about
that world, and a question that ran out of its budget goes on where it stopped when it is asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import structlog

from backendai_ray.core.explanations import StartBasis, StartEstimate
from backendai_ray.core.ids import ResourceGroupName, SessionId
from backendai_ray.core.scheduling import Placement, Refusal, SchedulingPolicy, Snapshot
from policies.outlook import Outlook, never_as_things_are

from .contained import Hung, run_contained

log = structlog.get_logger()

BUDGET_S = 0.5
"""How long one question may look ahead."""
GOOD_FOR_S = 2.0
"""How old an outlook may be: sessions end before their limits, and then there is a newer world anyway."""
_PATIENCE_S = 5.0
"""How long a question waits for those before it."""
_TIMEOUT_S = 10.0


class Foresight:
    """Estimates when sessions start."""

    def __init__(
        self,
        group: ResourceGroupName,
        *,
        load: Callable[[str, str, Mapping[str, Any]], SchedulingPolicy],
        budget_s: float = BUDGET_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without a policy.

        Args:
            group: The resource group.
            load: Makes a policy from its name, selection and options.
            budget_s: How long one question may look ahead.
            clock: Monotonic seconds.
        """
        self._group = group
        self._load = load
        self._budget_s = budget_s
        self._clock = clock
        self._wanted: tuple[str, str, Mapping[str, Any]] | None = None
        self._policy: SchedulingPolicy | None = None
        self._outlook: tuple[object, Outlook] | None = None
        self._lock = asyncio.Lock()

    def configure(self, policy: str, selection: str, options: Mapping[str, Any]) -> None:
        """Look ahead with another policy from now on."""
        if self._wanted != (policy, selection, options):
            self._wanted = policy, selection, options
            self._policy = self._outlook = None

    async def start_of(
        self, session_id: SessionId, outcome: Refusal | Placement, snapshot: Snapshot, world: object = None
    ) -> StartEstimate:
        """Return when a session may start; a policy that fails here costs the estimate and nothing more.

        Args:
            session_id: One of the snapshot's pending sessions.
            outcome: What is decided on it now.
            snapshot: The world now.
            world: Equal for two snapshots that differ in nothing but their time; ``None``: of its own.
        """
        if isinstance(outcome, Placement):
            return StartEstimate(basis=StartBasis.NOW, at=snapshot.now, message="there is room for it now")
        never = never_as_things_are(outcome.code, outcome.message)
        if never is not None:
            return never
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._lock.acquire()
        except TimeoutError:
            message = "many ask for estimates at this moment; ask again"
            return StartEstimate(basis=StartBasis.UNKNOWN, message=message)
        try:
            return await self._look(session_id, snapshot, world)
        except Hung:
            why = "the policy did not answer in time"
        except Exception as exc:  # noqa: BLE001 - a policy is other people's code
            why = f"the policy failed ({type(exc).__name__}: {exc})"
        finally:
            self._lock.release()
        self._policy = self._outlook = None
        log.warning("foresight.failed", group=self._group, session_id=session_id, why=why)
        return StartEstimate(basis=StartBasis.UNKNOWN, message=f"{why} when it was asked about the future")

    async def _look(self, session_id: SessionId, snapshot: Snapshot, world: object) -> StartEstimate:
        if self._policy is None:
            assert self._wanted is not None
            self._policy = await run_contained(partial(self._load, *self._wanted), _TIMEOUT_S, name="foresight-load")
        known = self._outlook
        if world is None or known is None or known[0] != world or snapshot.now - known[1].begun_at > GOOD_FOR_S:
            known = world, Outlook(snapshot, self._policy.decide)
        self._outlook = known if world is not None else self._outlook
        deadline = self._clock() + self._budget_s
        question = partial(known[1].start_of, session_id, lambda: self._clock() >= deadline)
        return await run_contained(question, _TIMEOUT_S, name=f"foresight-{self._group}")
