"""Jupyter's messages as frames: signed JSON (https://jupyter-client.readthedocs.io/en/stable/messaging.html)."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from binascii import hexlify
from time import gmtime, strftime

DELIMITER = b"<IDS|MSG>"
VERSION = "5.3"

MYPY = False
if MYPY:
    from typing import Any


class Wire:
    """Packs and unpacks the messages of one connection; keeps no other state."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.identity = hexlify(os.urandom(8))
        """The routing id of shell and stdin: a kernel asks for input at the place where the request came from."""
        self._session = hexlify(os.urandom(8)).decode()

    def pack(self, kind: str, content: dict[str, Any], parent: dict[str, Any] | None = None) -> tuple[str, list[bytes]]:
        """Return a new message's id and its frames."""
        message_id = hexlify(os.urandom(16)).decode()
        header = {
            "msg_id": message_id,
            "session": self._session,
            "username": "user",
            "date": strftime("%Y-%m-%dT%H:%M:%S.000000Z", gmtime()),
            "msg_type": kind,
            "version": VERSION,
        }
        parts = [json.dumps(part).encode("utf-8") for part in (header, parent or {}, {}, content)]
        return message_id, [DELIMITER, self._sign(parts), *parts]

    def unpack(self, frames: list[bytes]) -> dict[str, Any] | None:
        """Return ``header``, ``parent`` and ``content``; None for what is not a message of this kernel."""
        try:
            start = frames.index(DELIMITER) + 1
            parts = frames[start + 1 : start + 5]
            if not hmac.compare_digest(frames[start], self._sign(parts)):
                return None
            header, parent, _, content = (json.loads(part.decode("utf-8", "replace")) for part in parts)
        except (ValueError, IndexError):
            return None
        if not all(isinstance(part, dict) for part in (header, parent, content)):
            return None
        return {"header": header, "parent": parent, "content": content}

    def _sign(self, parts: list[bytes]) -> bytes:
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode("ascii")
