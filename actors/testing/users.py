"""People who submit, restart, rename and end sessions, and ask again until they are told what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from actors.contracts import SubmitRequest, Submitted
from backendai_ray.core.errors import BackendError, InsufficientResources, QuotaExceeded, Unavailable
from backendai_ray.core.ids import AccessKey, SessionId
from backendai_ray.core.sessions import ClusterMode, SessionSpec, SessionType
from backendai_ray.core.slots import CPU, MEM, ResourceSlots

from .agents import GIB
from .machines import GPU
from .processes import Process
from .wire import Wire

OWNERS = (AccessKey("AKIAONE"), AccessKey("AKIATWO"))
_DAYS_WORK_S = 40.0


@dataclass(slots=True)
class Users:
    """What people do, and what they were told."""

    dice: Random
    wire: Wire
    clock: Callable[[], float]
    process: Process = field(default_factory=lambda: Process("users"))
    acknowledged: dict[str, SessionId] = field(default_factory=dict)
    """The session by the idempotency key of its request."""
    refused: list[str] = field(default_factory=list)
    """The keys of the requests that were."""
    _numbers: int = 0

    async def work(self, sessions: int) -> None:
        """Submit so many sessions in the course of a day, and do something to some of them."""
        await asyncio.gather(*(self.process.spawn(self._one(f"s{number}")) for number in range(sessions)))

    async def _one(self, name: str) -> None:
        dice = self.dice
        await asyncio.sleep(dice.uniform(0, _DAYS_WORK_S))
        owner = dice.choice(OWNERS)
        session_id = await self._submit(owner, name)
        if session_id is None:
            return
        for _ in range(dice.randrange(3)):
            await asyncio.sleep(dice.expovariate(1 / 8.0))
            await self._do_something(owner, session_id, name)

    async def _submit(self, owner: AccessKey, name: str) -> SessionId | None:
        """Submit until it is clear what became of it; a repetition has the same key and, like HTTP's, a new id."""
        asked = self._wishes(name, owner)
        while True:
            request = SubmitRequest(
                spec=SessionSpec(id=self._new_id(), name=name, access_key=owner, image="python", **asked),
                idempotency_key=f"key-{name}",
                request_id=f"request-{name}",
            )
            try:
                submitted: Submitted = await self._manager.submit(request)
            except (Unavailable, InsufficientResources, QuotaExceeded):  # it passes: nodes come, others end
                await asyncio.sleep(self.dice.uniform(0.1, 2))
            except BackendError:
                self.refused.append(request.idempotency_key)
                return None
            else:
                self.acknowledged[request.idempotency_key] = submitted.session.id
                return submitted.session.id

    def _wishes(self, name: str, owner: AccessKey) -> dict[str, Any]:
        """Return what somebody asks for: on the empty cluster there is room for it."""
        dice, size = self.dice, 1 if self.dice.random() < 0.7 else self.dice.randint(2, 3)
        slots = [(CPU, dice.choice([500, 1000] if size > 1 else [500, 1000, 2000])), (MEM, GIB)]
        if dice.random() < 0.4:
            slots.append((GPU, 1000 if size > 1 else 1000 * dice.randint(1, 2)))
        wishes: dict[str, Any] = {"slots": ResourceSlots(slots), "tag": name, "priority": dice.choice([10, 10, 20])}
        if size > 1:
            mode = dice.choice(list(ClusterMode)) if size == 2 else ClusterMode.MULTI_NODE
            wishes |= {"cluster_size": size, "cluster_mode": mode}
        if dice.random() < 0.5:
            wishes |= {"type": SessionType.BATCH, "startup_command": "work"}
            wishes["batch_timeout_s"] = dice.choice([None, 5.0, 60.0])
        if dice.random() < 0.1:
            wishes["starts_at"] = self.clock() + dice.uniform(1, 30)
        if dice.random() < 0.15 and self.acknowledged:
            wishes["depends_on"] = (dice.choice(list(self.acknowledged.values())),)
        return wishes

    async def _do_something(self, owner: AccessKey, session_id: SessionId, name: str) -> None:
        self._numbers += 1
        request_id, chance = f"request-{self._numbers}", self.dice.random()
        if chance < 0.35:
            await self.terminate(owner, session_id, forced=chance < 0.08)
        elif chance < 0.8:
            await self._until_told("restart", owner, session_id, request_id=request_id)
        else:
            new_name = f"{name}-renamed-{self._numbers}"
            await self._until_told("rename", owner, session_id, new_name, request_id=request_id)

    async def terminate(self, owner: AccessKey | str, session_id: SessionId, *, forced: bool = False) -> None:
        """End a session."""
        self._numbers += 1
        await self._until_told(
            "terminate", owner, session_id, forced=forced, recursive=False, request_id=f"request-{self._numbers}"
        )

    async def _until_told(self, method: str, *args: Any, **kwargs: Any) -> None:
        while True:
            try:
                await getattr(self._manager, method)(*args, **kwargs)
            except Unavailable:
                await asyncio.sleep(self.dice.uniform(0.1, 2))
            except BackendError:
                return  # it ended meanwhile, or does not run yet: an answer like any other
            else:
                return

    @property
    def _manager(self) -> Any:
        return self.wire.peer(self.process, "manager")

    def _new_id(self) -> SessionId:
        self._numbers += 1
        return SessionId(f"00000000-0000-4000-9000-{self._numbers:012x}")
