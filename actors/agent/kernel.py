"""One kernel's life on its node, as one task that goes straight through: make it, keep it, end it, say so.

Whatever happens to a kernel (an order to end, a death of its container, a restart) only wakes this task up, which
then decides; so no two things are ever done to one kernel at once. A kernel's end is told after everything of it
is gone and before its devices are given to anybody else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from actors.agent.backends.base import Ending, Found, Life, PreparedImage
from actors.agent.backends.environ import SOCKET_NAME
from actors.agent.folders import life_folder
from actors.agent.journal import KernelRecord, StopOrder
from actors.agent.links import KernelLink
from actors.agent.startup import take_result
from actors.agent.workshop import Launched, Workshop, launch_life
from backendai_ray.core.errors import (
    BackendError,
    EngineUnavailable,
    ImageNotFound,
    KernelStartFailed,
    KernelUnreachable,
    SessionEnded,
    SessionNotReady,
    Unavailable,
)
from backendai_ray.core.reports import KernelFact
from backendai_ray.core.sessions import KernelSpec, Reason, Status
from backendai_ray.core.slots import MEM, format_amount

log = structlog.get_logger()

FIRST_RETRY_S: Final = 0.2
LAST_RETRY_S: Final = 5.0
MAX_SOCKET_PATH: Final = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Why a kernel is being ended."""

    reason: Reason
    message: str = ""
    exit_code: int | None = None
    retryable: bool = False
    forced: bool = False
    by_itself: bool = False
    """It ended without being told to; the backend knows how."""


class KernelDriver:
    """Owns one kernel's record; all other parts read it."""

    def __init__(self, record: KernelRecord, workshop: Workshop, on_gone: Callable[[KernelDriver], None]) -> None:
        self.record = record
        self.link: KernelLink | None = None
        self._shop = workshop
        self._on_gone = on_gone
        self._wake = asyncio.Event()
        self._container_ended = False
        self._launching: asyncio.Future[Launched] | None = None
        self._task: asyncio.Task[None] | None = None
        self._oom_kills_told = 0
        self.ended = asyncio.Event()
        self._saving = asyncio.Lock()
        self._is_forgotten = False

    # ── what others may ask for ────────────────────────────────────────────────────────────────────────────────────

    def start(self, found: Found | None = None) -> None:
        """Begin; with ``found``, go on with a container that is there already."""
        name = f"kernel-{self.record.spec.kernel_id}"
        self._task = asyncio.create_task(self._drive(found), name=name)

    def refuse(self, message: str) -> None:
        """Begin to end a kernel that was never made, as a start that may do better elsewhere."""
        outcome = Outcome(reason=Reason.START_FAILED, message=message, retryable=True, forced=True)
        self._task = asyncio.create_task(self._end(outcome), name=f"kernel-{self.record.spec.kernel_id}")

    def stop(self, reason: Reason, *, forced: bool, grace_s: float | None = None) -> None:
        """Begin to end the kernel; a second order can only make it harder."""
        before = self.record.stop
        if before is None or (forced and not before.forced):
            order = StopOrder(reason=before.reason if before else reason, forced=forced, grace_s=grace_s)
            self.record = replace(self.record, stop=order)
            self._wake.set()
            if before is not None and not self.record.has_ended:
                self._in_background(self._kill_now())

    def restart(self, epoch: int) -> None:
        """Begin to give the kernel a fresh container."""
        if epoch > self.record.epoch and self.record.stop is None and not self.record.has_ended:
            # Not RUNNING from here on: whoever asks must not take the old container for the new one.
            status = Status.PREPARING if self.record.status is Status.RUNNING else self.record.status
            self.change(status=status, restart_to=epoch, route_epoch=max(epoch, self.record.route_epoch))
            self._wake.set()

    def container_ended(self, life: Life) -> None:
        """The backend says that a life has ended."""
        if life == self.record.life:
            self._container_ended = True
            self._wake.set()

    def change(self, **fields: Any) -> KernelRecord:
        """Change the record in memory; the caller writes it where that matters."""
        self.record = replace(self.record, **fields)
        return self.record

    async def save(self, *, durable: bool = True) -> None:
        """Write the record as it is now; writes of one kernel happen one after the other."""
        async with self._saving:
            if not self._is_forgotten:
                await self._shop.offload.quick(self._shop.journal.write, self.record, durable=durable)

    async def forget(self) -> None:
        """Delete what is left of the ended kernel; nothing is written about it any more."""
        async with self._saving:
            self._is_forgotten = True
            await self._shop.offload.slow(self._shop.journal.forget, self.record.spec.kernel_id)

    @property
    def is_being_made(self) -> bool:
        """Its container is on its way."""
        return self.record.status in (Status.PREPARING, Status.PULLING, Status.CREATING) and self.record.stop is None

    def fact(self) -> KernelFact:
        return self.record.fact()

    async def ready_link(self) -> KernelLink:
        """Return the connection to a running kernel, made anew if it was lost.

        Raises:
            SessionNotReady: it does not run yet.
            SessionEnded: it has ended or is being ended.
            KernelUnreachable: it runs, but does not answer.
        """
        if self.link is not None and self.link.alive and self.record.status is Status.RUNNING:
            return self.link
        if self.record.status in (Status.TERMINATED, Status.TERMINATING) or self.record.stop is not None:
            raise SessionEnded(f"the session has ended: {self.record.message or self.record.reason or 'it was ended'}")
        if self.record.status is not Status.RUNNING:
            raise SessionNotReady(f"the session is not running yet: its kernel is {self.record.status}")
        if self._container_ended:
            raise KernelUnreachable("the kernel has just ended")
        link = self._new_link()
        await link.connect(5.0)
        if self.link is not None:
            self.link.close()
        self.link = link
        return link

    def new_oom_kills(self) -> int:
        """Return how many processes of the kernel were killed for memory since this was last asked."""
        total = self._shop.backend.oom_kills(self.record.life)
        new, self._oom_kills_told = total - self._oom_kills_told, total
        return max(0, new)

    def memory_limit(self) -> str:
        """Return the kernel's memory limit for people."""
        return format_amount(MEM, self.record.spec.allocation.slots().amount(MEM))

    async def detach(self) -> None:
        """Let go of the kernel without ending it: the agent leaves, the kernel stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.link is not None:
            self.link.close()

    # ── the way through ────────────────────────────────────────────────────────────────────────────────────────────

    async def _drive(self, found: Found | None) -> None:
        try:
            outcome = await self._live(found)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("kernel.failed", kernel_id=self.record.spec.kernel_id)
            outcome = Outcome(reason=Reason.START_FAILED, message=f"the agent failed: {error!r}", retryable=True)
        await self._end(outcome)

    async def _live(self, found: Found | None) -> Outcome:
        """Make the kernel and keep it until there is a reason to end it."""
        while True:
            try:
                await self._unless_stopped(self._connect() if found else self._make())
            except _StoppedError:
                return self._ordered()
            except BackendError as error:
                return self._failed_start(error, was_adopted=found is not None)
            if self.record.restart_to is None:
                await self._say_running()
            while not (self._container_ended or self.record.stop or self.record.restart_to is not None):
                self._wake.clear()
                await self._wake.wait()
            if self.record.stop:
                return self._ordered()
            if self.record.restart_to is None:
                return Outcome(reason=Reason.SELF_TERMINATED, by_itself=True)
            await self._retire(self.record.restart_to)
            found = None

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, or raise as soon as somebody wants the kernel to end."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                if self.record.stop is not None:
                    raise _StoppedError
                self._wake.clear()
                waiter = asyncio.create_task(self._wake.wait())
                try:
                    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiter.cancel()
            task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    def _ordered(self) -> Outcome:
        stop = self.record.stop or StopOrder(reason=Reason.USER_REQUESTED)
        return Outcome(reason=stop.reason, forced=stop.forced)

    def _failed_start(self, error: BackendError, *, was_adopted: bool) -> Outcome:
        log.warning("kernel.start_failed", kernel_id=self.record.spec.kernel_id, error=error.message)
        if was_adopted and self._container_ended:
            return Outcome(reason=Reason.SELF_TERMINATED, by_itself=True)
        if isinstance(error, ImageNotFound):
            return Outcome(reason=Reason.IMAGE_NOT_FOUND, message=error.message)
        retryable = bool(error.details.get("retryable", isinstance(error, Unavailable)))
        return Outcome(reason=Reason.START_FAILED, message=error.message, retryable=retryable, forced=True)

    # ── making ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _make(self) -> None:
        shop, spec = self._shop, self.record.spec
        if shop.backend.is_prepared(spec.image):
            self._progress(Status.CREATING)
        else:
            self._progress(Status.PULLING, f"getting the image {spec.image}")
        image = await shop.images.prepare(spec.image, spec.architecture, self._tell)
        _check_size(spec, image)
        self._progress(Status.CREATING)
        async with shop.starts:
            self._container_ended = False
            self.change(has_runner=bool(image.python))
            await self.save(durable=False)
            job = shop.offload.slow(launch_life, shop, self.record, image)
            self._launching = asyncio.ensure_future(job)
            launched = await asyncio.shield(self._launching)
            self.change(container_id=launched.container_id, advisory=launched.advisory)
            await self._connect(launched.environ)

    async def _connect(self, environ: Mapping[str, str] | None = None) -> None:
        """Wait for the runner, unless the container ends first; one that was started ahead gets its environment.

        Raises:
            KernelUnreachable: there was no answer; the message holds what the container printed.
        """
        link = self._new_link()
        greeting = asyncio.create_task(link.connect(self._shop.settings.agent.runner_start_timeout_s))
        try:
            while not greeting.done() and not self._container_ended:
                waiter = asyncio.create_task(self._wake.wait())
                await asyncio.wait({greeting, waiter}, return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
                if not greeting.done() and not self._container_ended:
                    # Another order woke us up, which is not for us to judge: look again a little later.
                    await asyncio.wait({greeting}, timeout=0.01)
            if not greeting.done():
                raise KernelUnreachable("the container ended before its runner answered")
            if (await greeting).is_spare and environ is not None:  # none: it ran before, so it has it already
                await link.adopt(environ)
        except KernelUnreachable as error:
            link.close()
            said = await self._shop.offload.quick(self._shop.backend.log, self.record.life, 500)
            tail = said.decode(errors="replace").strip()
            message = f"{error.message}; it printed: {tail}" if tail else error.message
            raise KernelUnreachable(message, retryable=not self._container_ended) from error
        except BaseException:
            link.close()
            raise
        finally:
            greeting.cancel()
        if self.link is not None and self.link.alive:
            link.close()  # a caller who could not wait has connected meanwhile
        else:
            self.link = link

    def _new_link(self) -> KernelLink:
        record, shop = self.record, self._shop
        path = life_folder(shop.settings.sessions_dir, record.life) / "run" / SOCKET_NAME
        text = str(path)
        if len(os.fsencode(text)) > MAX_SOCKET_PATH:
            text = f"/proc/self/fd/{shop.sessions_fd}/{path.relative_to(shop.settings.sessions_dir)}"
        return shop.connect(shop, record, Path(text))

    def _progress(self, status: Status, message: str = "") -> None:
        if self.record.status is not status:
            self.change(status=status, message=message)
            self._shop.facts.put(self.fact())

    def _tell(self, message: str) -> None:
        """Pass on how far the image is."""
        if self.record.status is Status.PULLING and self.record.stop is None:
            self.change(message=message)
            self._shop.facts.put(self.fact())

    async def _say_running(self) -> None:
        fact = self.change(status=Status.RUNNING, message="", reason="").fact()
        await self._note("that it runs")  # first: what was told to run must not be made again by a later agent
        self._shop.facts.put(fact)
        log.info("kernel.running", kernel_id=self.record.spec.kernel_id, life=self.record.life.tag)

    # ── ending ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _retire(self, epoch: int) -> None:
        """End the present life and go on to the next one, with the same devices and files."""
        await self._clear_away(forced=False)
        self._container_ended = False
        self.record = self.record.restarted(epoch)
        await self.save()

    async def _end(self, outcome: Outcome) -> None:
        self.change(status=Status.TERMINATING, reason=outcome.reason.value, message=outcome.message)
        if self.record.stop is None:  # so that an agent that comes back ends it for the same reason
            self.change(stop=StopOrder(reason=outcome.reason, forced=outcome.forced))
        ending = await self._clear_away(forced=outcome.forced)
        outcome = self._with_ending(outcome, ending)
        await self._shop.offload.quick(take_result, self, self._shop.settings.sessions_dir)
        record = self.change(
            status=Status.TERMINATED,
            reason=outcome.reason.value,
            message=outcome.message,
            exit_code=outcome.exit_code,
            retryable=outcome.retryable,
        )
        await self._persist_end(ending.log)
        self._shop.held.release(record.spec.kernel_id)
        self._shop.facts.put(self.fact())
        self.ended.set()
        log.info("kernel.ended", kernel_id=record.spec.kernel_id, reason=record.reason, message=record.message)
        self._on_gone(self)

    async def _note(self, what: str) -> None:
        """Write the record before others hear of it: an agent that dies in between must know it afterwards."""
        try:
            await self.save(durable=False)
        except OSError as error:
            log.warning("kernel.not_noted", what=what, kernel_id=self.record.spec.kernel_id, error=str(error))

    async def _clear_away(self, *, forced: bool) -> Ending:
        """Stop and remove the present life, however long that takes."""
        await self._note("why it ends")
        if self._launching is not None:
            await asyncio.wait([self._launching])  # a launch cannot be called back: what it makes is removed below
            self._launching.cancelled() or self._launching.exception()
            self._launching = None
        link, self.link = self.link, None
        if link is not None:
            if not forced and not self._container_ended:
                await self._politely(link)
            link.close()
        shop, life = self._shop, self.record.life
        gang = self.record.spec.session_id if len(self.record.spec.cluster_hosts) > 1 else None
        grace_s = 0.0 if forced else self._grace_s(was_noticed=link is not None)
        ending, delay = None, FIRST_RETRY_S
        while True:
            try:
                if ending is None:
                    ending = await shop.offload.slow(shop.backend.stop, life, grace_s)
                await shop.offload.slow(shop.backend.remove, life, gang)
                return ending
            except Exception as error:  # noqa: BLE001 - nothing may keep a kernel's end from being tried again
                log.warning("kernel.not_gone_yet", kernel_id=life.kernel_id, error=str(error)[:300])
                grace_s = 0.0
            await asyncio.sleep(delay)
            delay = min(LAST_RETRY_S, delay * 2)

    def _grace_s(self, *, was_noticed: bool) -> float:
        """Return how long the engine waits between asking and killing."""
        ordered_s = self.record.stop.grace_s if self.record.stop is not None else None
        if ordered_s is None:
            return self._shop.settings.agent.stop_grace_s
        # The runner has given the notice, and its time is up.
        return 0.0 if was_noticed and self.record.has_runner else ordered_s

    async def _politely(self, link: KernelLink) -> None:
        """Give the kernel's programs notice; where a grace was ordered, wait for them that long."""
        grace_s = self.record.stop.grace_s if self.record.stop is not None else None
        try:
            async with asyncio.timeout(1.0):
                await link.shutdown(grace_s)
        except (BackendError, TimeoutError):
            return  # it is stopped the hard way next
        if grace_s is None or not self.record.has_runner:
            return
        try:
            async with asyncio.timeout(grace_s):
                while not self._container_ended and not (self.record.stop and self.record.stop.forced):
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            pass  # its time is up

    async def _kill_now(self) -> None:
        """A forced order overtook a polite one."""
        try:
            await self._shop.offload.slow(self._shop.backend.stop, self.record.life, 0.0)
        except EngineUnavailable:
            pass  # the polite order is still at it, and tries again

    def _with_ending(self, outcome: Outcome, ending: Ending) -> Outcome:
        killed_for_memory = f"killed for memory: the limit is {self.memory_limit()}"
        if ending.oom_killed and (outcome.by_itself or outcome.reason is Reason.START_FAILED):
            return replace(
                outcome,
                reason=Reason.OUT_OF_MEMORY,
                message=killed_for_memory,
                exit_code=ending.exit_code,
                retryable=False,
            )
        if not outcome.by_itself:
            return replace(outcome, exit_code=outcome.exit_code if outcome.exit_code is not None else ending.exit_code)
        if ending.exit_code is None:
            message = f"the container is gone: {ending.message or 'somebody removed it'}"
            return replace(outcome, reason=Reason.CONTAINER_LOST, message=message)
        message = f"its main process ended with exit code {ending.exit_code}"
        return replace(outcome, message=message, exit_code=ending.exit_code)

    async def _persist_end(self, text: bytes) -> None:
        kernel_id, delay = self.record.spec.kernel_id, FIRST_RETRY_S
        await self._shop.offload.quick(self._shop.journal.save_log, kernel_id, text)
        while True:
            try:
                await self.save()
                return
            except OSError as error:
                # Told all the same in the end: after a crash it would be found out again from what is left.
                log.error("kernel.end_not_written", kernel_id=kernel_id, error=str(error))
                if delay >= LAST_RETRY_S:
                    return
            await asyncio.sleep(delay)
            delay = min(LAST_RETRY_S, delay * 2)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        _BACKGROUND.add(task)
        task.add_done_callback(_forget_background)


_BACKGROUND: Final[set[asyncio.Task[None]]] = set()
"""Keeps small jobs alive that nobody waits for."""


def _forget_background(task: asyncio.Task[None]) -> None:
    _BACKGROUND.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("kernel.background_failed", error=repr(error))


class _StoppedError(Exception):
    """Somebody wants the kernel to end."""


def _check_size(spec: KernelSpec, image: PreparedImage) -> None:
    """See that the kernel has what its image's maker says that it needs.

    Raises:
        KernelStartFailed: it has less.
    """
    if not image.minimum.fits_in(spec.slots):
        raise KernelStartFailed(
            f"the image {spec.image} needs at least {image.minimum} by its labels; the session asks for {spec.slots}",
            retryable=False,
        )
