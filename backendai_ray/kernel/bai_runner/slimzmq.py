"""Load pyzmq's compiled core alone: ``import zmq`` in full costs as much as starting Python.

The core needs only two small modules beside it (constants, errors) and one name of ``threading``; light stand-ins
for these live in ``sys.modules`` during the import and are taken out again, so that a user's own ``import zmq``
finds the user's own package. Where a release of pyzmq does not fit the stand-ins, the package is imported whole.

The caller uses integer socket options only (ROUTING_ID and SUBSCRIBE apart, which take bytes), asks for events before
it receives, and never tracks messages: these are the paths that do without the modules left out.
"""

from __future__ import annotations

import sys

POLLIN = 1
SUB = 2
SNDMORE = 2
DEALER = 5
ROUTER = 6
ROUTING_ID = 5
SUBSCRIBE = 6
RCVMORE = 13
EVENTS = 15
LINGER = 17
SNDHWM = 23
RCVHWM = 24

ModuleType = type(sys)

MYPY = False
if MYPY:
    from typing import Any


def load(lib: str) -> Any:
    """Return pyzmq's core: a module with ``Context``, ``Socket`` and ``zmq_poll``; *lib* is the folder it is in."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "zmq"}
    if not before:
        had_threading = "threading" in sys.modules
        try:
            return _load_core(lib + "/zmq" if lib else _find_package())
        except Exception:
            pass
        finally:
            if not had_threading:
                sys.modules.pop("threading", None)
            for name in [name for name in sys.modules if name.split(".")[0] == "zmq"]:
                del sys.modules[name]
    if lib:
        sys.path.insert(0, lib)
    try:
        import zmq
        import zmq.backend
    finally:
        if lib:
            sys.path.remove(lib)
    return zmq.backend


def _find_package() -> str:
    from importlib.machinery import PathFinder

    # Not from the working directory: that is the user's.
    spec = PathFinder.find_spec("zmq", [folder for folder in sys.path if folder])
    if spec is None or spec.origin is None:
        raise ImportError("pyzmq is not installed here")
    return spec.origin.rpartition("/")[0]


def _load_core(package: str) -> Any:
    zmq = _module("zmq", __path__=[package], COPY_THRESHOLD=1 << 30, DRAFT_API=False)
    _module("zmq.backend", __path__=[package + "/backend"])
    _module("zmq.backend.cython", __path__=[package + "/backend/cython"])
    _module("zmq.constants", SocketOption=_untyped_option, _OptType=_OptType)
    zmq.error = _module("zmq.error", **_ERRORS)
    if "threading" not in sys.modules:
        _module("threading", Event=None)
    core = __import__("zmq.backend.cython._zmq", fromlist=["Socket"])
    if core.Socket is None or core.Context is None:
        raise ImportError("not the pyzmq that was expected")
    return core


def _module(name: str, **content: Any) -> Any:
    module = ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    return module


class _BytesOption:
    _opt_type = "bytes"


def _untyped_option(option: int) -> type[_BytesOption]:
    """Say that the option is unknown: pyzmq then takes it for an integer, as all of ours are but two."""
    if option in (ROUTING_ID, SUBSCRIBE):
        return _BytesOption
    raise ValueError(option)


class _OptType:
    int = "int"
    int64 = "int64"
    bytes = "bytes"
    fd = "fd"


class ZMQError(OSError):
    """An error of libzmq, told by its number alone."""

    def __init__(self, errno: int = 0, msg: str = "") -> None:
        OSError.__init__(self, errno, msg or "libzmq error")


class _Again(ZMQError):
    pass


class _ContextTerminated(ZMQError):
    pass


class _InterruptedSystemCall(ZMQError, InterruptedError):
    pass


def _check_version(*args: Any) -> None:
    """Every libzmq in question has what is used here."""


_ERRORS = {
    "ZMQError": ZMQError,
    "ZMQBaseError": OSError,
    "ZMQBindError": ZMQError,
    "Again": _Again,
    "ContextTerminated": _ContextTerminated,
    "InterruptedSystemCall": _InterruptedSystemCall,
    "_check_version": _check_version,
}
