"""The output of one run: ordered, numbered, kept until acknowledged, bounded.

A *record* is a kind (one letter) and text. Records are gathered in an open tail; a reader's poll, a change of kind
or size closes the tail into a *chunk*, which gets the run's next ``seq`` and never changes any more: whoever polls
again with the same ``after_seq`` sees the same bytes. Nothing here locks, waits or reads a clock.
"""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]  # the package collections is slow to import

STDOUT = "o"
STDERR = "e"
MEDIA = "m"  # "<mime type>\n<content>"
HTML = "h"
LOG = "l"
STEP = "s"  # "<clean-finished|build-finished> <exit code>": a poll never reads past it

MERGEABLE = STDOUT + STDERR
SLICE_CHARS = 1 << 16
"""Callers hand over text in pieces of at most this many characters."""
CHUNK_CHARS = 1 << 18
"""A tail of this many characters is closed."""
CHUNK_OVERHEAD = 128
"""Bytes of memory that a chunk takes beside its data, so that many tiny ones count as what they cost."""
MAX_CHUNKS_TAKEN = 1000

MYPY = False
if MYPY:
    Chunk = tuple[int, str, bytes]


class RunBuffer:
    """Output that waits for its reader, at most about *limit* bytes of it.

    The bound is soft by one piece: what is offered while there is any room at all is taken whole.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.last_seq = 0
        self.acked_seq = 0
        self.dropped_bytes = 0
        self._dropped_kind = STDOUT
        self._chunks: deque[Chunk] = deque()
        self._chunk_bytes = 0
        self._tail: list[str] = []
        self._tail_kind = ""
        self._tail_chars = 0
        self._steps = 0

    @property
    def has_step(self) -> bool:
        """Whether the end of a build step is among what is held."""
        return self._steps > 0

    @property
    def size(self) -> int:
        """About the bytes of memory held (the open tail counts characters)."""
        return self._chunk_bytes + self._tail_chars

    @property
    def has_room(self) -> bool:
        return not self.dropped_bytes and self._chunk_bytes + self._tail_chars < self.limit

    def offer(self, kind: str, text: str) -> bool:
        """Take a record in if there is room; say whether it was taken."""
        if self.dropped_bytes or self._chunk_bytes + self._tail_chars >= self.limit:
            return False
        self.force(kind, text)
        return True

    def force(self, kind: str, text: str) -> None:
        """Take a record in whatever the room (for the little that must not get lost)."""
        if kind != self._tail_kind or kind not in MERGEABLE or self._tail_chars >= CHUNK_CHARS:
            self._close_tail()
            self._tail_kind = kind
            self._steps += kind == STEP
        self._tail.append(text)
        self._tail_chars += len(text)

    def drop(self, kind: str, text: str) -> None:
        """Count a record that found no room; a marker will stand for it."""
        if not self.dropped_bytes:
            self._dropped_kind = kind if kind in MERGEABLE else STDERR
        self.dropped_bytes += len(encode(text))

    def acknowledge(self, seq: int) -> bool:
        """Forget every chunk up to *seq*; say whether that made room."""
        if seq <= self.acked_seq:
            return False
        self.acked_seq = min(seq, self.last_seq)
        chunks = self._chunks
        while chunks and chunks[0][0] <= seq:
            _, kind, data = chunks.popleft()
            self._chunk_bytes -= len(data) + CHUNK_OVERHEAD
            self._steps -= kind == STEP
        if self.dropped_bytes and self.size <= self.limit * 3 // 4:
            self.mark_dropped()
        return True

    def mark_dropped(self) -> None:
        """Put the marker for what was dropped at the end of what is held."""
        if self.dropped_bytes:
            text = "\n[... %d bytes of output were cut: nobody was reading and the buffer of %s was full ...]\n" % (
                self.dropped_bytes,
                _size_text(self.limit),
            )
            self.dropped_bytes = 0
            self.force(self._dropped_kind, text)

    def has_after(self, seq: int) -> bool:
        """Whether a poll after *seq* would bring something."""
        return self.last_seq > seq or bool(self._tail)

    def take(self, after_seq: int, max_bytes: int) -> tuple[list[Chunk], bool]:
        """Return the chunks after *after_seq*, at least one if there is any, and whether that is all there is."""
        self._close_tail()
        taken: list[Chunk] = []
        total = 0
        for chunk in self._chunks:
            if chunk[0] <= after_seq:
                continue
            if taken and (total + len(chunk[2]) > max_bytes or len(taken) >= MAX_CHUNKS_TAKEN):
                return taken, False
            taken.append(chunk)
            total += len(chunk[2])
            if chunk[1] == STEP:
                return taken, chunk[0] == self.last_seq
        return taken, True

    def move_into(self, other: RunBuffer) -> None:
        """Hand everything held to *other*, as far as it has room."""
        self.mark_dropped()
        self._close_tail()
        for _, kind, data in self._chunks:
            other.force(kind, data.decode("utf-8"))
        self._chunks.clear()
        self._chunk_bytes = 0
        self.acked_seq = self.last_seq

    def discard(self) -> None:
        """Forget all output (of a finished run that nobody came for)."""
        self._chunks.clear()
        self._tail = []
        self._chunk_bytes = self._tail_chars = 0
        self._tail_kind = ""

    def _close_tail(self) -> None:
        if self._tail:
            data = encode("".join(self._tail))
            self.last_seq += 1
            self._chunks.append((self.last_seq, self._tail_kind, data))
            self._chunk_bytes += len(data) + CHUNK_OVERHEAD
            self._tail = []
            self._tail_chars = 0
        self._tail_kind = ""


def encode(text: str) -> bytes:
    """UTF-8; what has none (lone surrogates) is written as an escape."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _size_text(size: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return "%d %s" % (size >> shift, unit)
    return "%d bytes" % size
