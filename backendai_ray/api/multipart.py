"""Multipart bodies read as a stream: what is held in memory is a chunk, never a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from backendai_ray.core.errors import BadRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_HEADER_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A file begins."""

    filename: str


@dataclass(frozen=True, slots=True)
class PartData:
    """Bytes of the file that began last."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The file is whole."""


PartEvent = PartBegin | PartData | PartEnd


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a Content-Type header names.

    Raises:
        BadRequest: it is no multipart type, or names none.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
        raise BadRequest("an upload needs the content type multipart/form-data with a boundary")
    return boundary


async def read_parts(body: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[PartEvent]:
    """Yield the files of a multipart body as it arrives.

    Raises:
        BadRequest: it is broken, ends early, or has a part that is no file.
    """
    collector = _Collector()
    parser = MultipartParser(boundary, collector.callbacks())
    try:
        async for chunk in body:
            if chunk:
                parser.write(chunk)
            for event in collector.take():
                yield event
        parser.finalize()
    except FormParserError as exc:
        raise BadRequest(f"the multipart body is broken: {exc}") from None
    for event in collector.take():
        yield event
    if not collector.ended:
        raise BadRequest("the multipart body ends before its closing boundary")


class _Collector:
    """Turns the parser's callbacks into events."""

    def __init__(self) -> None:
        self.ended = False
        self._events: list[PartEvent] = []
        self._name = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._header_bytes = 0

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": lambda data, start, end: self._events.append(PartData(bytes(data[start:end]))),
            "on_part_end": lambda: self._events.append(PartEnd()),
            "on_end": self._end,
        }

    def take(self) -> list[PartEvent]:
        events, self._events = self._events, []
        return events

    def _part_begin(self) -> None:
        self._disposition = b""
        self._header_bytes = 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._count(end - start)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count(end - start)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise BadRequest("a part's headers are too large")

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        self._events.append(PartBegin(_filename(self._disposition)))

    def _end(self) -> None:
        self.ended = True


def _filename(disposition: bytes) -> str:
    _, options = parse_options_header(disposition)
    raw = options.get(b"filename")
    if raw is None:
        raise BadRequest("every part of an upload needs a filename; it is the path in the session")
    try:
        # The official client percent-encodes file names, slashes included; so must whoever means a literal '%'.
        return unquote(raw.decode(), errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("a part's filename is no UTF-8") from None
