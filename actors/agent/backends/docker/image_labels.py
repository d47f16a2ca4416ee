"""What the makers of Backend.AI images say of them in labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.slots import ResourceSlots, parse_amount

log = structlog.get_logger()

_MINIMUM: Final = "ai.backend.resource.min."


def minimum_of(labels: Mapping[str, str], image: str) -> ResourceSlots:
    """Return what a kernel of the image needs at least (``ai.backend.resource.min.cpu`` and the like).

    A label that cannot be read, or names a slot that is none, is passed over: it must not keep an image from use.
    """
    units: dict[str, int] = {}
    for name, text in labels.items():
        if not name.startswith(_MINIMUM):
            continue
        slot = name.removeprefix(_MINIMUM)
        try:
            units[slot] = parse_amount(slot, text, field=name)
        except (InvalidParameter, ValueError) as error:
            log.warning("image.label_passed_over", image=image, label=name, value=text[:40], why=str(error)[:100])
    return ResourceSlots(units)
