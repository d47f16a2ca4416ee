"""The passes of one resource group, one at a time.

A pass: fetch what changed from the Manager, let the policy actor decide, have the plan committed, and again at once
if lines of it were rejected, because the world had moved on. Nothing here cannot be fetched again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, TypeVar

import structlog

from backendai_ray.core.errors import InvalidParameter, PolicyStuck, Unavailable
from backendai_ray.core.explanations import Explanation
from backendai_ray.core.ids import ResourceGroupName, SessionId
from backendai_ray.core.proposals import MoveRequest, Proposal
from backendai_ray.core.scheduling import Changes, PendingSession, Plan, Refusal

from .contracts import ManagerContract, PolicyHostContract

log = structlog.get_logger()

MAX_ROUNDS = 4
"""Rounds of one pass; who still has rejected lines then is out of step and backs off."""
BACK_OFF_S = (0.05, 2.0)
"""First and longest pause after a failed pass."""
BAN_S = (60.0, 3600.0)
"""How long a policy that took its actor with it is not used, the first time and at most; it doubles each time."""


T = TypeVar("T")


async def leave_host(_: ResourceGroupName) -> None:
    """Replace nothing: where the policy actor is in this process."""


@dataclass(slots=True)
class PassCounters:
    """What became of the passes of a group since the start."""

    passes: int = 0
    skipped: int = 0
    """Safety sweeps that found that nothing had changed."""
    placements: int = 0
    preemptions: int = 0
    rejections: int = 0
    failures: int = 0
    waiting: int = 0
    """Sessions that the last plan refused."""
    last_pass_s: float = 0.0
    last_decide_s: float = 0.0
    last_error: str = ""
    actors_replaced: int = 0
    """Policy actors that did not answer any more."""
    warning: str = ""
    """Of the policy actor; empty when all is well."""


class GroupScheduler:
    """Schedules one resource group."""

    def __init__(
        self,
        group: ResourceGroupName,
        config: Mapping[str, Any],
        *,
        manager: ManagerContract,
        connect_host: Callable[[ResourceGroupName], Awaitable[PolicyHostContract]],
        sweep_interval_s: float,
        pass_prefix: str,
        random: Random,
        clock: Callable[[], float] = time.time,
        replace_host: Callable[[ResourceGroupName], Awaitable[None]] = leave_host,
    ) -> None:
        """Make the scheduler of a group; :meth:`run` is its loop.

        Args:
            group: The resource group.
            config: ``policy``, ``selection`` and ``options``.
            manager: Where changes come from and plans go.
            connect_host: Returns the group's policy actor, made if need be.
            sweep_interval_s: A pass runs at least this often.
            pass_prefix: Makes pass ids unique over restarts.
            random: Spreads retries.
            clock: Unix seconds.
            replace_host: Ends the process of the group's policy actor, so that a fresh one takes its name.
        """
        self.counters = PassCounters()
        self._group = group
        self._config = config
        self._manager = manager
        self._connect_host = connect_host
        self._replace_host = replace_host
        self._banned_until = 0.0
        self._ban = ""
        """Why the policy is not used; empty when it is."""
        self._bans_in_a_row = 0
        self._sweep_interval_s = sweep_interval_s
        self._pass_prefix = pass_prefix
        self._random = random
        self._clock = clock
        self._host: PolicyHostContract | None = None
        self._incarnation, self._since = "", 0
        self._settled = False
        """The last plan changed nothing, and would not if it were made again."""
        self._told: dict[SessionId, Refusal] = {}
        """The refusals that this Manager has been told."""
        self._next_at: float | None = None
        self._woken = asyncio.Event()
        self._woken.set()
        self._lock = asyncio.Lock()
        self._pass_number = 0
        self._failures_in_a_row = 0

    def wake(self) -> None:
        """Run a pass soon; many calls lead to one."""
        self._woken.set()

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Decide by another policy from the next pass on."""
        if config != self._config:
            self._config = config
            self._host = None
            self._ban, self._bans_in_a_row = "", 0
            self._settled = False
            self.wake()

    def stats(self) -> dict[str, Any]:
        """Return the counters."""
        return asdict(self.counters)

    async def run(self) -> None:
        """Run passes for ever: when woken, when a start time comes, and at the slow sweep."""
        while True:
            await self._wait()
            self._woken.clear()
            try:
                async with self._lock:
                    await self._pass()
            except Exception as exc:  # noqa: BLE001 - whatever it was, it is logged and the next pass starts over
                await self._back_off(exc)
            else:
                self._failures_in_a_row = 0

    async def explain(self, session_id: SessionId) -> Explanation:
        """Return why a session waits, as of now, and when it may start.

        Raises:
            SessionNotFound: it is not waiting (any more).
            Unavailable: the Manager or the policy actor is away.
        """
        return await (await self._up_to_date()).explain(session_id, self._clock())

    async def rehearse(self, session: PendingSession) -> Explanation:
        """Return what would become of a session if it were submitted now.

        Raises:
            Unavailable: the Manager or the policy actor is away.
        """
        return await (await self._up_to_date()).rehearse(session, self._clock())

    async def propose_moves(self, request: MoveRequest, *, apply: bool) -> Proposal:
        """Return the moves that would let a waiting session start; with ``apply``, carry them out.

        What has changed between the two costs the application: nothing is moved then, and the message says so.

        Raises:
            SessionNotFound: it is not waiting (any more).
            Unavailable: the Manager or the policy actor is away.
        """
        proposal = await (await self._up_to_date()).propose_moves(request, self._clock())
        if not apply or not proposal.moves:
            return proposal
        async with self._lock:
            pass_id = self._next_pass_id()
            applied = await self._manager.apply(self._group, proposal.plan, pass_id=pass_id)
            self._settled = False
        self.counters.preemptions += len(applied.preempted)
        log.info("pass.moved", group=self._group, pass_id=pass_id, moved=len(applied.preempted))
        if applied.rejected:
            why = applied.rejected[0].message
            return replace(proposal, message=f"nothing was moved, ask again: {why}", moves=(), plan=Plan())
        return replace(proposal, is_applied=True)

    async def _up_to_date(self) -> PolicyHostContract:
        """Return the policy actor once it knows, and has decided on, the present."""
        async with self._lock:
            await self._pass()
            if not self._settled:
                await self._round()
            return await self._connected()

    # ── one pass ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _pass(self) -> None:
        started = time.perf_counter()
        try:
            for _ in range(MAX_ROUNDS):
                if await self._round():
                    self.counters.last_error = ""
                    return
        except BaseException:
            # Whoever answers under its name next may know nothing; ask where it stands.
            self._host = None
            self._settled = False
            raise
        finally:
            self.counters.last_pass_s = time.perf_counter() - started
        raise Unavailable(f"plans of resource group {self._group} are still rejected after {MAX_ROUNDS} rounds")

    async def _round(self) -> bool:
        """Fetch, decide, apply; returns false when a line was rejected and another round may do better."""
        if self._ban and self._clock() >= self._banned_until:
            self._ban, self._host = "", None
        host = await self._connected()
        changes = await self._manager.changes(self._group, self._incarnation, self._since)
        if self._nothing_new(changes) and await self._asked(host.position()) == (self._incarnation, self._since):
            self.counters.skipped += 1
            return True
        plan = await self._decide(host, changes)
        self.counters.passes += 1
        plan = self._only_news(plan)
        if not plan.placements and not plan.preemptions and not plan.refusals:
            self._settled = not plan.warning
            return True
        self._settled = False
        pass_id = self._next_pass_id()
        applied = await self._manager.apply(self._group, plan, pass_id=pass_id)
        self._told.update((refusal.session_id, refusal) for refusal in plan.refusals)
        self._settled = not plan.placements and not plan.preemptions and not plan.warning
        self.counters.placements += len(applied.placed)
        self.counters.preemptions += len(applied.preempted)
        self.counters.rejections += len(applied.rejected)
        for rejection in applied.rejected:
            log.info("pass.rejected", group=self._group, session_id=rejection.session_id, why=rejection.message)
        log.info("pass.applied", group=self._group, pass_id=pass_id, placed=len(applied.placed))
        return not applied.rejected

    def _next_pass_id(self) -> str:
        self._pass_number += 1
        return f"{self._pass_prefix}:{self._group}:{self._pass_number}"

    def _only_news(self, plan: Plan) -> Plan:
        """Leave out the refusals that the Manager knows: in a long queue, nearly all."""
        told = self._told
        for gone in told.keys() - {refusal.session_id for refusal in plan.refusals}:
            del told[gone]
        news = [
            refusal
            for refusal in plan.refusals
            # Nearly always the same object as before, where policy actor and scheduler share a process.
            if (known := told.get(refusal.session_id)) is not refusal and known != refusal
        ]
        return replace(plan, refusals=tuple(news))

    def _nothing_new(self, changes: Changes) -> bool:
        due = self._next_at is not None and self._next_at <= self._clock()
        return self._settled and not due and not changes.full and not changes.changes

    async def _decide(self, host: PolicyHostContract, changes: Changes) -> Plan:
        started = time.perf_counter()
        plan = await self._asked(host.decide(changes, self._clock()))
        if plan is None:
            # It came back empty: it lost its policy with its world.
            await self._configure(host)
            changes = await self._manager.changes(self._group, "", 0)
            plan = await self._asked(host.decide(changes, self._clock()))
        if plan is None:
            raise Unavailable(f"the policy actor of {self._group} does not take the whole world")
        if changes.incarnation != self._incarnation:
            self._told.clear()
        self._incarnation, self._since = changes.incarnation, changes.upto
        self._next_at = plan.next_at
        self.counters.last_decide_s = time.perf_counter() - started
        self.counters.waiting = len(plan.refusals)
        if not plan.warning:
            self._bans_in_a_row = 0
        if plan.warning != self.counters.warning:
            self.counters.warning = plan.warning
            log.warning("pass.policy_warning", group=self._group, warning=plan.warning)
        return plan

    async def _connected(self) -> PolicyHostContract:
        if self._host is None:
            host = await self._connect_host(self._group)
            await self._configure(host)
            self._incarnation, self._since = await self._asked(host.position())
            self._settled = False
            self._host = host
        return self._host

    async def _configure(self, host: PolicyHostContract) -> None:
        config = self._config
        try:
            if self._ban:
                await self._asked(host.configure("fifo", "concentrated", {}, standing_in=self._ban))
                return
            await self._asked(
                host.configure(
                    str(config.get("policy", "fifo")),
                    str(config.get("selection", "concentrated")),
                    dict(config.get("options") or {}),
                )
            )
        except InvalidParameter as exc:
            # The policy actor goes on with fifo and says so with every plan.
            log.error("pass.bad_policy", group=self._group, error=exc.message)

    async def _asked(self, answer: Awaitable[T]) -> T:
        """Return what the policy actor answers; one that hangs is replaced, and its policy not used for a while."""
        try:
            return await answer
        except Unavailable as exc:
            if isinstance(exc, PolicyStuck) or exc.details.get("timed_out"):
                await self._replace(exc.message)
            raise

    async def _replace(self, why: str) -> None:
        first, longest = BAN_S
        pause_s = min(longest, first * 2.0 ** min(self._bans_in_a_row, 10))
        self._bans_in_a_row += 1
        self._banned_until = self._clock() + pause_s
        policy = self._config.get("policy", "fifo")
        self._ban = f"policy {policy} failed ({why}); fifo decides in its place, and it is tried again in {pause_s:g} s"
        self.counters.actors_replaced += 1
        log.error("pass.policy_actor_replaced", group=self._group, policy=policy, why=why, banned_s=pause_s)
        self._host = None
        await self._replace_host(self._group)

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _wait(self) -> None:
        timeout_s = self._sweep_interval_s
        if self._next_at is not None:
            timeout_s = min(timeout_s, max(0.001, self._next_at - self._clock()))
        if self._ban:
            timeout_s = min(timeout_s, max(0.001, self._banned_until - self._clock()))
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            pass  # the slow sweep, or a start time

    async def _back_off(self, exc: Exception) -> None:
        first, longest = BACK_OFF_S
        pause = min(longest, first * 2.0 ** min(self._failures_in_a_row, 10)) * self._random.uniform(0.5, 1.0)
        self._failures_in_a_row += 1
        self.counters.failures += 1
        self.counters.last_error = f"{type(exc).__name__}: {exc}"
        expected = isinstance(exc, Unavailable)
        log.warning(
            "pass.failed",
            group=self._group,
            error=self.counters.last_error,
            again_in_s=round(pause, 3),
            exc_info=None if expected else exc,
        )
        self.wake()
        await asyncio.sleep(pause)
