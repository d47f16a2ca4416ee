"""Records as JSON: how frozen records of the domain are written to disk, to the store and to the wire, and read back.

One codec for everyone who persists records. It is strict about types and lenient about age: a field that a newer
version added is taken from its default when an older record lacks it, and a field that an older version does not
know is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec

from backendai_ray.core.slots import ResourceSlots

T = TypeVar("T")

DecodeError = msgspec.MsgspecError
"""What :func:`decode` raises: no JSON, or JSON of another shape than the type asks for; the message says where."""


def encode(record: object) -> bytes:
    """Return a record (or plain data holding records) as compact JSON; bytes become base64.

    Raises:
        TypeError: something in it is no record and no plain data.
    """
    return _encoder.encode(record)


def decode(data: bytes | str, kind: type[T]) -> T:
    """Return the record of that type which ``data`` holds.

    Raises:
        DecodeError: it is not JSON, or not of that type.
    """
    return cast("T", _decoder(cast("Callable[..., Any]", kind)).decode(data))


def to_plain(record: object) -> Any:
    """Return a record as dicts, lists, strings and numbers, ready for a JSON column."""
    return msgspec.to_builtins(record, enc_hook=_encode_special)


def from_plain(data: object, kind: type[T]) -> T:
    """Return the record of that type from what :func:`to_plain` made.

    Raises:
        DecodeError: the data is not of that type.
    """
    return msgspec.convert(data, kind, dec_hook=_decode_special)


def _encode_special(value: object) -> object:
    if isinstance(value, ResourceSlots):
        return value.to_json()
    raise TypeError(f"{type(value).__name__} cannot be written as a record")


def _decode_special(kind: type, value: object) -> object:
    if kind is ResourceSlots and isinstance(value, dict):
        if any(not isinstance(units, int) or isinstance(units, bool) for units in value.values()):
            raise ValueError("amounts of a record are whole units")
        return ResourceSlots(value)
    raise ValueError(f"cannot be read as {kind.__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_encode_special)


@lru_cache(maxsize=256)
def _decoder(kind: Callable[..., Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(cast("type[Any]", kind), dec_hook=_decode_special)
