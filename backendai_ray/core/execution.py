"""What running code in a kernel looks like to everyone between the runner and the client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class ExecMode(StrEnum):
    """What a caller wants from an execute request (the official API's ``mode``)."""

    QUERY = "query"
    BATCH = "batch"
    COMPLETE = "complete"
    CONTINUE = "continue"
    INPUT = "input"


class RunStatus(StrEnum):
    """Where a run stands after a poll (the official API's ``status``)."""

    CONTINUED = "continued"
    WAITING_INPUT = "waiting-input"
    CLEAN_FINISHED = "clean-finished"
    BUILD_FINISHED = "build-finished"
    FINISHED = "finished"
    EXEC_TIMEOUT = "exec-timeout"


class OutputType(StrEnum):
    """The type of one console record."""

    STDOUT = "stdout"
    STDERR = "stderr"
    MEDIA = "media"
    """Data is ``[mime type, content]``; binary content is base64."""
    HTML = "html"
    LOG = "log"


ConsoleRecord = tuple[str, str | tuple[str, str]]
"""``(OutputType, data)`` in the order in which the program wrote."""


@dataclass(frozen=True, slots=True)
class RunOutput:
    """What one poll of a run brought."""

    run_id: str
    status: RunStatus
    console: tuple[ConsoleRecord, ...] = ()
    seq: int = 0
    """The last record's number; pass it as ``after_seq`` of the next poll to acknowledge up to here."""
    exit_code: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """With ``waiting-input``: ``{"is_password": bool}``."""
