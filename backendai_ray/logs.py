"""Logging of the actors: JSON lines, one file per actor, rotated; ids are bound by whoever handles a request."""

from __future__ import annotations

import logging
import logging.handlers
import re
from pathlib import Path
from typing import Any

import structlog

MAX_LOG_BYTES = 20 * 2**20
KEPT_LOGS = 3

_SECRET_FIELDS = re.compile(r"secret|password|token|signature|authorization", re.IGNORECASE)


def _scrub(_logger: Any, _method: str, event: Any) -> Any:
    for name in event:
        if _SECRET_FIELDS.search(name):
            event[name] = "***"
    return event


def configure_logging(directory: Path, name: str, level: str) -> None:
    """Send structlog's and the standard library's records of this process to ``directory/name.log``.

    Calling it again (an actor restarted in a used process) replaces the earlier set-up.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(
        directory / f"{name}.log", maxBytes=MAX_LOG_BYTES, backupCount=KEPT_LOGS
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _scrub,
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old, logging.handlers.RotatingFileHandler):
            root.removeHandler(old)
            old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for noisy in ("httpx", "urllib3", "docker", "asyncio", "ray", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        cache_logger_on_first_use=False,
    )
