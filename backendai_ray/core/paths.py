"""Which paths a user may name inside a session's folder.

A path is judged as text first (this module) and by the file system afterwards, where the agent opens it without
following links out of the folder.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from .errors import InvalidParameter, PathOutsideSession

WORK_DIR = PurePosixPath("/home/work")
MAX_PATH_BYTES = 1024


def parse_session_path(text: str, *, field: str = "path") -> PurePosixPath:
    """Return a user's path relative to the session's folder; ``.`` for the folder itself.

    Absolute paths are understood when they lie below ``/home/work``.

    Raises:
        InvalidParameter: empty, too long, or with a NUL byte.
        PathOutsideSession: it climbs or points out of the folder.
    """
    if not text or len(text.encode(errors="surrogateescape")) > MAX_PATH_BYTES or "\0" in text:
        raise InvalidParameter(f"{field}: not a usable path (1 to {MAX_PATH_BYTES} bytes, no NUL)", field=field)
    path = PurePosixPath(text)
    if path.is_absolute():
        if not path.is_relative_to(WORK_DIR):
            raise PathOutsideSession(f"{field}: {text[:120]!r} is not below {WORK_DIR}", field=field)
        path = path.relative_to(WORK_DIR)
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            raise PathOutsideSession(f"{field}: {text[:120]!r} climbs out of the session's folder", field=field)
    return path
