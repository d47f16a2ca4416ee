"""What databases say when something is wrong, as one sentence for the person who must mend it."""

from __future__ import annotations

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from backendai_ray.core.errors import BackendError, BadRequest, Conflict, NameInUse, StoreUnavailable

_SENTENCES = (
    ("disk is full", "the disk under the store is full; free some space, nothing was changed"),
    ("No space left", "the disk under the database is full; free some space, nothing was changed"),
    ("not a database", "{where} is not a store, or it is damaged; restore it from a backup or move it away"),
    ("malformed", "{where} is damaged; restore it from a backup"),
    ("unable to open", "{where} cannot be opened; its folder must exist and be writable"),
    ("readonly database", "{where} cannot be written; check who owns the file and its folder"),
    ("database is locked", "{where} is held by another program; end it and try again"),
    ("disk I/O error", "{where} cannot be read or written; check the disk"),
    ("password authentication", "{where} refuses the user or the password of the store's URL"),
    ("does not exist", "{where} says: {said}"),
    ("statement timeout", "{where} took too long to answer"),
)


def as_backend_error(exc: Exception, where: str) -> BackendError:
    """Return what to raise for a database's error.

    Args:
        exc: What the driver or SQLAlchemy raised.
        where: The store in words, without secrets.
    """
    if isinstance(exc, BackendError):
        return exc
    if isinstance(exc, IntegrityError):
        return _broken_rule(exc)
    said = " ".join(str(getattr(exc, "orig", None) or exc).split())
    for sign, sentence in _SENTENCES:
        if sign in said:
            return StoreUnavailable(sentence.format(where=where, said=said[:200]))
    if isinstance(exc, PoolTimeout):
        return StoreUnavailable(f"all connections to {where} are busy; try again")
    if is_connection_lost(exc) or is_unreachable(exc):
        return StoreUnavailable(f"{where} does not answer: {said[:200]}")
    if isinstance(exc, UnicodeError | DataError):
        return BadRequest(f"{where} cannot hold a value: {said[:200]}")
    return StoreUnavailable(f"{where} failed: {said[:200]}")


def is_connection_lost(exc: BaseException) -> bool:
    """Return whether the connection broke, so that a new one may do better."""
    return isinstance(exc, DBAPIError) and exc.connection_invalidated


def is_unreachable(exc: BaseException) -> bool:
    """Return whether no connection could be made."""
    return isinstance(exc, SQLAlchemyError) and any(sign in str(exc) for sign in ("connect", "resolve host"))


def is_about_one_batch(exc: BaseException) -> bool:
    """Return whether a statement was refused for what it holds, so that other batches may still succeed."""
    if not isinstance(exc, DBAPIError):
        return not isinstance(exc, SQLAlchemyError | OSError | BackendError)
    if exc.connection_invalidated:
        return False
    return type(exc).__name__ in ("IntegrityError", "DataError", "ProgrammingError", "InterfaceError")


def _broken_rule(exc: IntegrityError) -> BackendError:
    said = str(exc.orig)
    if "uq_sessions_live_name" in said or "sessions.access_key, sessions.name" in said:
        return NameInUse()
    return Conflict(f"this does not fit what is stored: {' '.join(said.split())[:200]}")
