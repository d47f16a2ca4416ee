"""What every handler of one front door shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from backendai_ray.api.reach import Reach
from backendai_ray.api.runs import Acknowledgements
from backendai_ray.api.services import Services
from backendai_ray.config import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """The peers, the settings and the soft state of a front door."""

    services: Services
    settings: Settings
    reach: Reach
    acknowledgements: Acknowledgements


async def _context(connection: HTTPConnection) -> Context:
    context: Context = connection.app.state.context
    return context


ContextDep = Annotated[Context, Depends(_context)]
