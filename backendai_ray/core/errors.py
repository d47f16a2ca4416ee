"""The one error tree.

    BackendError
    ├── BadRequest                  400
    │   ├── InvalidParameter        400  a field is wrong: ``details["field"]`` names it
    │   ├── MethodNotAllowed        405
    │   └── PathOutsideSession      400
    ├── Unauthorized                401
    │   ├── AuthorizationMissing    401
    │   ├── InvalidSignature        401
    │   ├── StaleSignature          401
    │   └── UnknownAccessKey        401
    ├── Forbidden                   403
    ├── NotFound                    404
    │   ├── SessionNotFound         404
    │   ├── KernelNotFound          404
    │   ├── AgentNotFound           404
    │   ├── FileMissing             404
    │   ├── RunNotFound             404
    │   └── ImageNotFound           404
    ├── Conflict                    409
    │   ├── NameInUse               409
    │   ├── IdempotencyMismatch     409
    │   ├── SessionNotReady         409
    │   ├── SessionEnded            409
    │   └── StaleRoute              409  (between actors; the front door resolves again)
    ├── TooLarge                    413
    ├── UnsupportedByImage          422
    ├── KernelBusy                  429
    ├── InsufficientResources       412
    ├── QuotaExceeded               412
    ├── Unavailable                 503
    │   ├── RequestLost             503  (at the client: the connection broke on the way)
    │   ├── AgentUnavailable        503
    │   ├── KernelUnreachable       503
    │   ├── PolicyStuck             503
    │   ├── StoreUnavailable        503
    │   ├── BusUnavailable          503
    │   └── EngineUnavailable       503
    ├── RequestTimeout              504
    └── InternalError               500
        ├── InvalidTransition       500  a state machine was asked for an illegal move: a bug
        └── KernelStartFailed       500

A class has a stable machine ``code`` and a true HTTP status. The rule of the house: one positional message for
people plus keyword details, so that every error survives pickling between actors, and the client raises the same
class from the code.
"""

from __future__ import annotations

from typing import Any, ClassVar


class BackendError(Exception):
    """Anything that can go wrong in a way that a person or a program should be told about."""

    code: ClassVar[str] = "backend-error"
    http_status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong."

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message or self.title)
        self.details: dict[str, Any] = details

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args[0], self.details))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"


def _rebuild(cls: type[BackendError], message: str, details: dict[str, Any]) -> BackendError:
    return cls(message, **details)


class BadRequest(BackendError):
    code = "bad-request"
    http_status = 400
    title = "The request cannot be understood."


class InvalidParameter(BadRequest):
    code = "invalid-parameter"
    title = "A parameter is wrong."


class PathOutsideSession(BadRequest):
    code = "path-outside-session"
    title = "The path leads out of the session's folder."


class MethodNotAllowed(BadRequest):
    code = "method-not-allowed"
    http_status = 405
    title = "The path is not served with this method."


class Unauthorized(BackendError):
    code = "unauthorized"
    http_status = 401
    title = "The request is not signed by a known key."


class AuthorizationMissing(Unauthorized):
    code = "authorization-missing"
    title = "The request has no usable Authorization header."


class InvalidSignature(Unauthorized):
    code = "invalid-signature"
    title = "The signature does not match; check the secret key."


class StaleSignature(Unauthorized):
    code = "stale-signature"
    title = "The request's date is too far from the server's clock."


class UnknownAccessKey(Unauthorized):
    code = "unknown-access-key"
    title = "The access key is unknown or inactive."


class Forbidden(BackendError):
    code = "forbidden"
    http_status = 403
    title = "You may not do this."


class NotFound(BackendError):
    code = "not-found"
    http_status = 404
    title = "There is no such thing."


class SessionNotFound(NotFound):
    code = "session-not-found"
    title = "There is no such session."


class KernelNotFound(NotFound):
    code = "kernel-not-found"
    title = "There is no such kernel."


class AgentNotFound(NotFound):
    code = "agent-not-found"
    title = "There is no such agent."


class FileMissing(NotFound):
    code = "file-missing"
    title = "There is no such file in the session."


class RunNotFound(NotFound):
    code = "run-not-found"
    title = "There is no such run in the session."


class ImageNotFound(NotFound):
    code = "image-not-found"
    title = "There is no such image."


class Conflict(BackendError):
    code = "conflict"
    http_status = 409
    title = "This does not fit the present state."


class NameInUse(Conflict):
    code = "name-in-use"
    title = "A live session of yours has this name already."


class IdempotencyMismatch(Conflict):
    code = "idempotency-mismatch"
    title = "This idempotency key was used for another request."


class SessionNotReady(Conflict):
    code = "session-not-ready"
    title = "The session is not running yet."


class SessionEnded(Conflict):
    code = "session-ended"
    title = "The session has ended."


class StaleRoute(Conflict):
    code = "stale-route"
    title = "The session moved on since the caller looked it up."


class TooLarge(BackendError):
    code = "too-large"
    http_status = 413
    title = "This is larger than the limit."


class UnsupportedByImage(BackendError):
    code = "unsupported-by-image"
    http_status = 422
    title = "The session's image cannot do this."


class InsufficientResources(BackendError):
    code = "insufficient-resources"
    http_status = 412
    title = "The request can never be satisfied here."


class QuotaExceeded(BackendError):
    code = "quota-exceeded"
    http_status = 412
    title = "A quota does not allow this."


class KernelBusy(BackendError):
    code = "kernel-busy"
    http_status = 429
    title = "The kernel has too many runs waiting."


class Unavailable(BackendError):
    code = "unavailable"
    http_status = 503
    title = "A part of the system is not reachable now; try again."


class RequestLost(Unavailable):
    code = "request-lost"
    title = "The connection broke, so whether the request arrived is not known."


class AgentUnavailable(Unavailable):
    code = "agent-unavailable"
    title = "The node's agent is not reachable now; try again."


class KernelUnreachable(Unavailable):
    code = "kernel-unreachable"
    title = "The session's runner does not answer."


class PolicyStuck(Unavailable):
    code = "policy-stuck"
    title = "A scheduling policy hangs where it cannot be stopped; its actor is replaced."


class StoreUnavailable(Unavailable):
    code = "store-unavailable"
    title = "The store is not reachable now; nothing was changed."


class BusUnavailable(Unavailable):
    code = "bus-unavailable"
    title = "The event bus is not reachable now."


class EngineUnavailable(Unavailable):
    code = "engine-unavailable"
    title = "The container engine is not reachable now."


class RequestTimeout(BackendError):
    code = "request-timeout"
    http_status = 504
    title = "This took longer than the time given."


class InternalError(BackendError):
    code = "internal-error"
    title = "An unexpected error; its request id is in the log."


class InvalidTransition(InternalError):
    code = "invalid-transition"
    title = "A state machine was asked for an illegal move."


class KernelStartFailed(InternalError):
    code = "kernel-start-failed"
    title = "The kernel could not be started."


def all_errors() -> dict[str, type[BackendError]]:
    """Return every class of the tree by its code."""
    found: dict[str, type[BackendError]] = {}
    pending: list[type[BackendError]] = [BackendError]
    while pending:
        cls = pending.pop()
        found[cls.code] = cls
        pending.extend(cls.__subclasses__())
    return found


def error_from_code(code: str, message: str, details: dict[str, Any] | None = None) -> BackendError:
    """Rebuild an error that came over a wire; an unknown code becomes a plain :class:`BackendError`."""
    return all_errors().get(code, BackendError)(message, **(details or {}))
