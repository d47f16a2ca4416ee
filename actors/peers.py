"""Calling another actor: the one place where an actor handle is looked up, awaited and its failure named.

A peer stands for a *name*, not for a process: whatever actor bears the name now is called, so a restarted or
re-created actor is found again without anyone noticing but by one failed call. Every call has a timeout. Errors of
our tree come out as they were raised; everything Ray has to say about an actor that cannot be reached becomes an
``Unavailable``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.contracts import AgentContract, ManagerContract, PolicyHostContract, SokovanContract
from backendai_ray.core.errors import AgentUnavailable, BackendError, InternalError, Unavailable
from backendai_ray.core.ids import AgentId, ResourceGroupName

MANAGER = "manager"
SOKOVAN = "sokovan"

DEFAULT_TIMEOUT_S = 15.0
LONG_POLL_MARGIN_S = 10.0
_LOOKUP_TIMEOUT_S = 5.0

_TIMEOUTS: Mapping[str, float] = {
    "ping": 3.0,
    "heartbeat": 5.0,
    "wake": 5.0,
    "inspect": 10.0,
    "decide": 30.0,
    "apply": 30.0,
    "explain": 30.0,
    "rehearse": 30.0,
    "runtimes": 20.0,
    "propose_moves": 30.0,
    "submit": 30.0,
    "open_download": 300.0,
    "write_file": 60.0,
}


def agent_actor_name(agent_id: AgentId) -> str:
    """Return the name of an agent's actor."""
    return f"agent:{agent_id}"


def policy_host_actor_name(group: ResourceGroupName) -> str:
    """Return the name of a resource group's policy actor."""
    return f"policy:{group}"


class Peer:
    """Calls the methods of the actor of one name; ``peer.method(...)`` is awaited like a local method."""

    def __init__(self, name: str, namespace: str, *, unavailable: type[Unavailable] = Unavailable) -> None:
        self._name = name
        self._namespace = namespace
        self._unavailable = unavailable
        self._handle: Any = None

    @property
    def name(self) -> str:
        """The actor's name."""
        return self._name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        call = partial(self._call, method)
        object.__setattr__(self, method, call)
        return call

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        handle = self._handle or await self._look_up()
        timeout_s = timeout_of(method, args, kwargs)
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that arrives together with the result.
            async with asyncio.timeout(timeout_s):
                return await getattr(handle, method).remote(*args, **kwargs)
        except RayTaskError as exc:
            raise _cause(exc) from None
        except BackendError:
            raise
        except (TimeoutError, GetTimeoutError):
            raise self._unavailable(
                f"{self._name} did not answer {method} within {timeout_s:g} s", actor=self._name, timed_out=True
            ) from None
        except RayActorError as exc:
            self._handle = None
            raise self._unavailable(f"{self._name} is not reachable ({type(exc).__name__})", actor=self._name) from None
        except RayError as exc:
            self._handle = None
            raise self._unavailable(f"{self._name}: {type(exc).__name__}", actor=self._name) from None

    async def _look_up(self) -> Any:
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT_S):
                self._handle = await asyncio.to_thread(ray.get_actor, self._name, self._namespace)
        except (ValueError, TimeoutError, RayError):
            raise self._unavailable(f"there is no actor named {self._name} now", actor=self._name) from None
        return self._handle


def timeout_of(method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return how long to wait: a long poll says itself how long it may take."""
    waits = [kwargs.get("wait_s"), kwargs.get("timeout_s"), *(getattr(arg, "wait_s", None) for arg in args)]
    if method == "wait" and len(args) > 2:
        waits.append(args[2])
    if method == "read_pty" and len(args) > 3:
        waits.append(args[3])
    longest = max((float(w) for w in waits if isinstance(w, int | float)), default=None)
    if longest is not None:
        return longest + LONG_POLL_MARGIN_S
    return _TIMEOUTS.get(method, DEFAULT_TIMEOUT_S)


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    if isinstance(cause, BackendError):
        return cause
    return InternalError(f"{type(cause).__name__}: {cause}", traceback=str(error))


@cache
def manager_peer(namespace: str) -> ManagerContract:
    """Return the Manager."""
    return cast(ManagerContract, Peer(MANAGER, namespace))


@cache
def sokovan_peer(namespace: str) -> SokovanContract:
    """Return Sokovan."""
    return cast(SokovanContract, Peer(SOKOVAN, namespace))


@cache
def agent_peer(namespace: str, agent_id: AgentId) -> AgentContract:
    """Return the agent of a node."""
    return cast(AgentContract, Peer(agent_actor_name(agent_id), namespace, unavailable=AgentUnavailable))


@cache
def policy_host_peer(namespace: str, group: ResourceGroupName) -> PolicyHostContract:
    """Return the policy actor of a resource group."""
    return cast(PolicyHostContract, Peer(policy_host_actor_name(group), namespace))
