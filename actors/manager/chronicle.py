"""What the scheduler tells the sessions that wait, kept durably, beside the way of a session and never in it.

Notes are gathered in memory and committed about twice a second, many in one batch: nobody waits for them, and what was
noted in the last moments before a crash may be missing. A reason is noted when its code changes; a sentence that
changes under the same code (the closest node is another one) at most once a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import structlog

from backendai_ray.core.errors import BackendError, Conflict
from backendai_ray.core.ids import SessionId
from backendai_ray.core.scheduling import Refusal, Rejection
from backendai_ray.core.scheduling_history import KEPT, SchedulingEntry, Verdict
from backendai_ray.store import Batch

from .book import Book
from .ports import Clock, ManagerStore

log = structlog.get_logger()

REJECTED_CODE = "placement-rejected"
FLUSH_EVERY_S = 0.5
SENTENCE_EVERY_S = 60.0
"""How often a sentence may change under the same code."""
_CHUNK = 200
"""Sessions of one commit: other commits go in between."""
_MOST_UNSAVED = 8
"""Notes of one session that wait for their commit; older ones give way."""


@dataclass(frozen=True, slots=True)
class _Note:
    verdict: Verdict
    code: str
    message: str
    at: float
    cause: str

    def says_the_same_as(self, other: _Note | SchedulingEntry | None) -> bool:
        return self.is_like(other) and other is not None and self.message == other.message

    def is_like(self, other: _Note | SchedulingEntry | None) -> bool:
        return other is not None and (self.verdict, self.code) == (other.verdict, other.code)


class Chronicle:
    """Takes notes and saves them."""

    def __init__(self, book: Book, store: ManagerStore, clock: Clock) -> None:
        self._book = book
        self._store = store
        self._clock = clock
        self._began_at = clock()
        self._unsaved: dict[SessionId, list[_Note]] = {}
        self._held: dict[SessionId, _Note] = {}
        """Sentences that changed too soon after the last one: the newest of each session."""
        self._last: dict[SessionId, SchedulingEntry | None] = {}
        """The newest saved entry of each session; ``None``: it has none."""
        self._has_notes = asyncio.Event()
        self._flushing = asyncio.Lock()

    def refused(self, refusals: Iterable[Refusal], cause: str) -> None:
        """Note why sessions were not placed."""
        now = self._clock()
        for refusal in refusals:
            note = _Note(Verdict.REFUSED, refusal.code.value, refusal.message, now, cause)
            self._take(refusal.session_id, note)

    def rejected(self, rejections: Iterable[Rejection], cause: str) -> None:
        """Note that placements were not taken."""
        now = self._clock()
        for rejection in rejections:
            self._take(rejection.session_id, _Note(Verdict.REJECTED, REJECTED_CODE, rejection.message, now, cause))

    async def entries(self, session_id: SessionId) -> list[SchedulingEntry]:
        """Return what is kept of a session, oldest first, with what was noted just now."""
        if session_id in self._unsaved:
            await self.flush()
        return await self._store.scheduling_history(session_id)

    async def run(self) -> None:
        """Save for ever; what cannot be saved now is tried again."""
        while True:
            try:
                async with asyncio.timeout(SENTENCE_EVERY_S / 10):
                    await self._has_notes.wait()
            except TimeoutError:
                pass  # sentences that were held back may be due
            await asyncio.sleep(FLUSH_EVERY_S)
            try:
                await self.flush()
            except BackendError as exc:
                log.warning("chronicle.not_saved", error=exc.message, sessions=len(self._unsaved))
            except Exception:
                log.exception("chronicle.not_saved")

    async def flush(self) -> None:
        """Save what was noted.

        Raises:
            StoreUnavailable: not all of it; the rest is kept.
        """
        async with self._flushing:
            self._release_held()
            self._has_notes.clear()
            for _ in range(1 + len(self._unsaved) // _CHUNK):
                await self._flush_some(list(islice(self._unsaved, _CHUNK)))
            for session_id in [name for name in self._last if name not in self._book.live]:
                del self._last[session_id]

    # ── noting ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, session_id: SessionId, note: _Note) -> None:
        if session_id not in self._book.live:
            return
        unsaved = self._unsaved.get(session_id, [])
        before = unsaved[-1] if unsaved else self._last.get(session_id)
        if note.says_the_same_as(before):
            self._held.pop(session_id, None)
        elif unsaved and note.is_like(before):
            unsaved[-1] = _Note(note.verdict, note.code, note.message, unsaved[-1].at, note.cause)
        elif before is not None and note.is_like(before) and note.at - before.at < SENTENCE_EVERY_S:
            self._held[session_id] = note
        else:
            self._held.pop(session_id, None)
            self._unsaved[session_id] = [*unsaved, note][-_MOST_UNSAVED:]
            self._has_notes.set()

    def _release_held(self) -> None:
        now = self._clock()
        for session_id in list(self._held):
            last = self._last.get(session_id)
            if session_id not in self._book.live:
                del self._held[session_id]
            elif last is None or now - last.at >= SENTENCE_EVERY_S:
                self._unsaved.setdefault(session_id, []).append(self._held.pop(session_id))

    # ── saving ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _flush_some(self, session_ids: list[SessionId]) -> None:
        await self._learn(session_ids)
        taken = {session_id: self._unsaved.pop(session_id) for session_id in session_ids}
        entries = [entry for session_id, notes in taken.items() for entry in self._numbered(session_id, notes)]
        try:
            if entries:
                await self._store.commit(Batch(scheduling=tuple(entries)))
        except Conflict as exc:  # a session was purged meanwhile: its notes with it
            log.info("chronicle.session_gone", error=exc.message)
            taken.pop(SessionId(str(exc.details.get("session_id"))), None)
            self._put_back(taken)
        except BaseException:
            self._put_back(taken)
            raise
        else:
            self._last.update({entry.session_id: entry for entry in entries})

    def _put_back(self, taken: dict[SessionId, list[_Note]]) -> None:
        for session_id, notes in taken.items():
            self._unsaved[session_id] = [*notes, *self._unsaved.get(session_id, [])][-_MOST_UNSAVED:]
        if taken:
            self._has_notes.set()

    async def _learn(self, session_ids: list[SessionId]) -> None:
        """Find out where the entries of sessions end that were there before this Manager."""
        unknown = []
        for session_id in session_ids:
            session = self._book.live.get(session_id)
            if session_id in self._last:
                continue
            if session is not None and session.created_at >= self._began_at:
                self._last[session_id] = None
            else:
                unknown.append(session_id)
        if unknown:
            tails = await self._store.last_scheduling(unknown)
            self._last.update({session_id: tails.get(session_id) for session_id in unknown})

    def _numbered(self, session_id: SessionId, notes: list[_Note]) -> list[SchedulingEntry]:
        last = self._last.get(session_id)
        entries: list[SchedulingEntry] = []
        for note in notes:
            if note.says_the_same_as(last):
                continue  # told again to a Manager that was restarted
            last = SchedulingEntry(
                session_id=session_id,
                number=1 + (last.number if last is not None else 0),
                verdict=note.verdict,
                code=note.code,
                message=note.message,
                at=note.at,
                cause=note.cause,
            )
            entries.append(last)
        return entries[-KEPT:]
