"""Room on the engine's disk: images that were pulled here and are not in use go, the longest unused first.

The thresholds mean what kubelet's ``imageGCHighThresholdPercent`` and ``imageGCLowThresholdPercent`` mean. Unlike
there, an image that somebody built or loaded on the node is never touched: it could not be got again.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from backendai_ray import records

log = structlog.get_logger()

WRITE_INTERVAL_S: Final = 1.0
"""The last use of an image is known to this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledImage:
    """An image that we pulled."""

    reference: str
    used_at: float
    """When a kernel was last made of it, Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    images: Mapping[str, PulledImage] = field(default_factory=dict)


class PulledImages:
    """Which images were pulled here, and when each was last used; by image id, on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._images = dict(records.decode(path.read_bytes(), _File).images)
        except (OSError, records.DecodeError):
            self._images = {}  # none yet; or damaged: what was pulled before is kept for good then

    def pulled(self, image_id: str, reference: str, now: float) -> None:
        """An image has just been pulled."""
        with self._lock:
            self._images[image_id] = PulledImage(reference=reference, used_at=now)
            self._write()

    def used(self, image_id: str, now: float) -> None:
        """A kernel is made of an image; nothing happens when it is none of ours."""
        with self._lock:
            known = self._images.get(image_id)
            if known is not None and now - known.used_at >= WRITE_INTERVAL_S:  # not at every start of a burst
                self._images[image_id] = replace(known, used_at=now)
                self._write()

    def forget(self, image_id: str) -> None:
        """An image is gone."""
        with self._lock:
            if self._images.pop(image_id, None) is not None:
                self._write()

    def all(self) -> dict[str, PulledImage]:
        with self._lock:
            return dict(self._images)

    def _write(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(records.encode(_File(images=self._images)))
            Path(temporary).replace(self._path)
        except OSError as error:
            log.warning("images.use_not_noted", error=str(error))


def removable(pulled: Mapping[str, PulledImage], *, in_use: Set[str], kept: Iterable[str]) -> list[str]:
    """Return the ids of the images that may go, the longest unused first.

    Args:
        pulled: What we pulled.
        in_use: Ids of images of which there are containers, running or not, or kernels on their way.
        kept: References that must stay.
    """
    stays = set(kept)
    free = [
        (image.used_at, name) for name, image in pulled.items() if name not in in_use and image.reference not in stays
    ]
    return [name for _, name in sorted(free)]
