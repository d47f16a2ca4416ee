"""The record buffer against a plain list: order, numbering, acknowledgement, bound and marker."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_ray.kernel.bai_runner.records import (
    CHUNK_CHARS,
    CHUNK_OVERHEAD,
    HTML,
    MEDIA,
    STDERR,
    STDOUT,
    STEP,
    RunBuffer,
    encode,
)

MARKER = re.compile(
    r"\n\[\.\.\. (\d+) bytes of output were cut: nobody was reading and the buffer of .*? was full \.\.\.\]\n"
)

texts = st.text(st.characters(codec=None), max_size=40)  # any character, lone surrogates too
kinds = st.sampled_from([STDOUT, STDERR, HTML])
writes = st.tuples(st.just("write"), kinds, texts)
polls = st.tuples(st.just("poll"), st.integers(1, 300), st.just(""))
repeats = st.tuples(st.just("poll again"), st.integers(1, 300), st.just(""))


@dataclass
class Reader:
    """A client that acknowledges what it got and remembers all of it."""

    buffer: RunBuffer
    seq: int = 0
    got: list[tuple[str, str]] = field(default_factory=list)

    def poll(self, max_bytes: int) -> None:
        self.buffer.acknowledge(self.seq)
        chunks, complete = self.buffer.take(self.seq, max_bytes)
        again, _ = self.buffer.take(self.seq, max_bytes)
        assert chunks == again[: len(chunks)], "what was told once never changes"
        for number, kind, data in chunks:
            assert number == self.seq + 1, "numbers follow each other"
            self.seq = number
            self.got.append((kind, data.decode("utf-8")))
        assert complete == (not self.buffer.has_after(self.seq))

    def poll_rest(self) -> None:
        while self.buffer.has_after(self.seq) or self.buffer.dropped_bytes:
            self.poll(1 << 20)


def joined(records: list[tuple[str, str]]) -> list[tuple[str, str]]:
    result: list[tuple[str, str]] = []
    for kind, text in records:
        if result and result[-1][0] == kind and kind in (STDOUT, STDERR):
            result[-1] = (kind, result[-1][1] + text)
        elif text or kind == HTML:
            result.append((kind, text))
    return result


@given(st.lists(writes | polls))
def test_a_reader_gets_exactly_what_was_written_in_order(steps: list[tuple[str, object, str]]) -> None:
    buffer = RunBuffer(1 << 30)
    reader = Reader(buffer)
    written = []
    for action, argument, text in steps:
        if action == "write":
            assert buffer.offer(str(argument), text)
            written.append((str(argument), encode(text).decode("utf-8")))
        else:
            assert isinstance(argument, int)
            reader.poll(argument)
    reader.poll_rest()
    assert joined(reader.got) == joined(written)


@settings(max_examples=200)
@given(st.lists(writes | polls, max_size=80), st.integers(300, 2000))
def test_the_bound_holds_and_every_lost_byte_is_accounted_for(steps: list[tuple[str, object, str]], limit: int) -> None:
    buffer = RunBuffer(limit)
    reader = Reader(buffer)
    written_bytes = 0
    for action, argument, text in steps:
        if action == "write":
            written_bytes += len(encode(text))
            if not buffer.offer(str(argument), text):
                buffer.drop(str(argument), text)
        else:
            assert isinstance(argument, int)
            reader.poll(argument)
        # One piece of at most 40 characters beyond the limit, one marker, and the open tail's own chunk.
        assert buffer.size <= limit + 40 * 6 + 150 + 2 * CHUNK_OVERHEAD
    buffer.mark_dropped()
    reader.poll_rest()
    text = "".join(text for _, text in reader.got)
    cut = sum(int(count) for count in MARKER.findall(text))
    assert len(MARKER.sub("", text).encode()) + cut == written_bytes


def test_a_marker_stands_where_output_is_missing() -> None:
    buffer = RunBuffer(1 << 20)
    while buffer.offer(STDERR, "x" * 1000):
        pass
    buffer.drop(STDERR, "é" * 10)
    assert not buffer.offer(STDERR, "no"), "what follows a cut is cut too, until the reader has made room"
    buffer.drop(STDERR, "no")
    reader = Reader(buffer)
    reader.poll_rest()
    assert buffer.offer(STDERR, "after")
    reader.poll_rest()
    told = "".join(text for _, text in reader.got)
    cut = "\n[... 22 bytes of output were cut: nobody was reading and the buffer of 1 MiB was full ...]\n"
    assert told.strip("x") == cut + "after"
    assert {kind for kind, _ in reader.got} == {STDERR}


def test_nothing_is_read_past_the_end_of_a_step() -> None:
    buffer = RunBuffer(1 << 20)
    buffer.offer(STDOUT, "building")
    buffer.force(STEP, "build-finished 0")
    buffer.offer(STDOUT, "running")
    assert buffer.has_step
    first, complete = buffer.take(0, 1 << 20)
    assert [chunk[1:] for chunk in first] == [(STDOUT, b"building"), (STEP, b"build-finished 0")]
    assert not complete
    buffer.acknowledge(first[-1][0])
    assert not bool(buffer.has_step)
    second, complete = buffer.take(first[-1][0], 1 << 20)
    assert [chunk[2] for chunk in second] == [b"running"]
    assert complete


def test_small_writes_are_merged_and_pictures_are_not() -> None:
    buffer = RunBuffer(1 << 30)
    for _ in range(1000):
        buffer.offer(STDOUT, "line\n")
    buffer.offer(MEDIA, "image/png\nAAAA")
    buffer.offer(MEDIA, "image/png\nBBBB")
    chunks, _ = buffer.take(0, 1 << 20)
    assert [(kind, len(data)) for _, kind, data in chunks] == [(STDOUT, 5000), (MEDIA, 14), (MEDIA, 14)]


def test_large_output_is_cut_into_chunks_that_a_poll_can_take_one_by_one() -> None:
    buffer = RunBuffer(1 << 30)
    for _ in range(20):
        buffer.offer(STDOUT, "z" * (1 << 16))
    chunks, complete = buffer.take(0, CHUNK_CHARS)
    assert len(chunks) == 1
    assert not complete


def test_many_tiny_chunks_count_as_the_memory_they_take() -> None:
    buffer = RunBuffer(1 << 20)
    taken = 0
    while buffer.offer(STDOUT if taken % 2 else STDERR, "x"):
        taken += 1
    assert taken < (1 << 20) / CHUNK_OVERHEAD


def test_what_was_written_between_runs_moves_into_the_next() -> None:
    background, buffer = RunBuffer(1 << 10), RunBuffer(1 << 20)
    background.offer(STDOUT, "late")
    background.move_into(buffer)
    assert not background.size
    assert buffer.take(0, 100)[0] == [(1, STDOUT, b"late")]
    background.offer(STDOUT, "later")
    background.move_into(buffer)
    assert b"".join(chunk[2] for chunk in buffer.take(0, 100)[0]) == b"latelater"
