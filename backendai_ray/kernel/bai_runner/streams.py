"""What user code finds as sys.stdout, sys.stderr and sys.stdin."""

from __future__ import annotations

import io
from codecs import getincrementaldecoder

MYPY = False
if MYPY:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .output import Sink


class OutputStream(io.TextIOBase):
    """A text stream into the sink; it cannot be closed and never buffers."""

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True

    def __init__(self, sink: Sink, kind: str, fd: int, name: str) -> None:
        self._emit = sink.write
        self._kind = kind
        self._fd = fd
        self.name = name
        self.mode = "w"
        self.buffer = ByteStream(self, fd)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not %s" % type(text).__name__)
        if text:
            self._emit(self._kind, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        self.write("".join(lines))

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fd

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def reconfigure(self, **_: Any) -> None:
        """Accepted and ignored: the stream is UTF-8 and unbuffered in any case."""

    def detach(self) -> Any:
        raise io.UnsupportedOperation("detach")


class ByteStream(io.BufferedIOBase):
    """``sys.stdout.buffer``: bytes in, decoded piece by piece."""

    def __init__(self, stream: OutputStream, fd: int) -> None:
        self._stream = stream
        self._fd = fd
        self._decoder = getincrementaldecoder("utf-8")("replace")

    @property
    def raw(self) -> Any:
        return self

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._stream.write(self._decoder.decode(bytes(data)))
        return size

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        pass


class InputStream(io.TextIOBase):
    """Asks the client for a line each time the program wants one."""

    encoding = "utf-8"
    errors = "strict"
    mode = "r"
    name = "<stdin>"

    def __init__(self, ask: Callable[[bool], str]) -> None:
        self._ask = ask
        self._rest = ""

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        text = self._rest or self._ask(False)
        if size is None or size < 0:
            size = len(text)
        end = text.find("\n") + 1 or len(text)
        end = min(end, size)
        self._rest = text[end:]
        return text[:end]

    def read(self, size: int | None = -1) -> str:
        if size is not None and size >= 0:
            return self.readline(size)
        lines: list[str] = []
        while True:
            line = self.readline()
            if not line:
                return "".join(lines)
            lines.append(line)

    def readable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        pass
