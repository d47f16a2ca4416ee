"""Identifiers: what they look like, how they are made and how they are read.

Every id is a string with a type of its own, so that mypy tells a session from a kernel, and JSON, SQL and
log lines carry it as it is.
"""

from __future__ import annotations

import re
from typing import NewType
from uuid import UUID

from .errors import InvalidParameter

SessionId = NewType("SessionId", str)
"""A UUID in its canonical text form, fixed for the session's whole life."""

KernelId = NewType("KernelId", str)
"""A UUID in its canonical text form; one kernel is one container."""

AgentId = NewType("AgentId", str)
"""A stable name of a node, which survives restarts of Ray, of the agent and of the machine."""

DeviceId = NewType("DeviceId", str)
"""A device on one node, unique within its slot family there (``0``, ``GPU-5d3f…``)."""

AccessKey = NewType("AccessKey", str)
"""The public half of a keypair; the owner of a session."""

ResourceGroupName = NewType("ResourceGroupName", str)
"""A set of nodes with one scheduling policy."""

RunId = NewType("RunId", str)
"""Names one execution in one kernel; chosen by the caller, so that a repeated request never runs twice."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_AGENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RUN = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def is_uuid(text: str) -> bool:
    """Return whether ``text`` is a UUID in canonical form."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def parse_session_name(text: str, *, field: str = "name") -> str:
    """Return ``text`` if it can name a session.

    Raises:
        InvalidParameter: it is empty, too long, has other characters, or would be read as an id.
    """
    if not _NAME.fullmatch(text):
        raise InvalidParameter(
            f"{field}: {text[:80]!r} cannot name a session; use 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning and ending with a letter or digit",
            field=field,
        )
    if is_uuid(text):
        raise InvalidParameter(f"{field}: a session cannot be named like an id; choose another name", field=field)
    return text


def parse_agent_id(text: str, *, field: str = "agent_id") -> AgentId:
    """Return ``text`` as an agent id.

    Raises:
        InvalidParameter: it has characters that cannot stand in labels and actor names.
    """
    if not _AGENT.fullmatch(text):
        raise InvalidParameter(
            f"{field}: {text[:80]!r} is no agent id; use up to 64 letters, digits, '.', '_' or '-'",
            field=field,
        )
    return AgentId(text)


def parse_run_id(text: str, *, field: str = "runId") -> RunId:
    """Return ``text`` as a run id.

    Raises:
        InvalidParameter: it is empty, over 64 characters, or has other than letters, digits and ``_.:-``.
    """
    if not _RUN.fullmatch(text):
        raise InvalidParameter(
            f"{field}: {text[:80]!r} is no run id; use 1 to 64 letters, digits, '_', '.', ':' or '-'",
            field=field,
        )
    return RunId(text)
