"""The live sessions in memory, findable in every way the Manager needs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from backendai_ray.core.ids import AccessKey, AgentId, KernelId, SessionId
from backendai_ray.core.sessions import TERMINAL, Session


class Book:
    """Every session that is not terminal, as last committed; and who waits for one to move."""

    def __init__(self) -> None:
        self.live: dict[SessionId, Session] = {}
        self._by_name: dict[tuple[AccessKey, str], SessionId] = {}
        self._by_kernel: dict[KernelId, SessionId] = {}
        self._by_agent: dict[AgentId, set[SessionId]] = {}
        self._waiters: dict[SessionId, set[asyncio.Future[Session]]] = {}

    def put(self, session: Session) -> None:
        """Take a new record in place of the old one; a terminal one leaves the book."""
        before = self.live.pop(session.id, None)
        if before is not None:
            self._unindex(before)
        if not session.is_terminal:
            self.live[session.id] = session
            self._index(session)
        for waiter in self._waiters.pop(session.id, ()):
            if not waiter.done():
                waiter.set_result(session)

    def named(self, access_key: AccessKey, name: str) -> SessionId | None:
        """Return the live session of that owner and name."""
        return self._by_name.get((access_key, name))

    def of_kernel(self, kernel_id: KernelId) -> Session | None:
        """Return the live session that a kernel belongs to."""
        session_id = self._by_kernel.get(kernel_id)
        return None if session_id is None else self.live[session_id]

    def on_agent(self, agent_id: AgentId) -> list[Session]:
        """Return the live sessions with a kernel on the node that has not ended."""
        return [self.live[session_id] for session_id in sorted(self._by_agent.get(agent_id, ()))]

    def agents(self) -> Iterator[AgentId]:
        """Return the nodes on which live sessions have kernels."""
        return iter(list(self._by_agent))

    async def next_version(self, session_id: SessionId, timeout_s: float) -> Session | None:
        """Wait until the session's record is replaced and return the new one; ``None`` at the timeout."""
        waiter: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(session_id, set()).add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError:
            return None
        finally:
            waiters = self._waiters.get(session_id)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[session_id]

    def _index(self, session: Session) -> None:
        self._by_name[session.spec.access_key, session.spec.name] = session.id
        for kernel in session.kernels:
            self._by_kernel[kernel.id] = session.id
            if kernel.agent_id is not None and kernel.status not in TERMINAL:
                self._by_agent.setdefault(kernel.agent_id, set()).add(session.id)

    def _unindex(self, session: Session) -> None:
        self._by_name.pop((session.spec.access_key, session.spec.name), None)
        for kernel in session.kernels:
            self._by_kernel.pop(kernel.id, None)
            sessions = self._by_agent.get(kernel.agent_id) if kernel.agent_id is not None else None
            if sessions is not None:
                sessions.discard(session.id)
                if not sessions:
                    del self._by_agent[kernel.agent_id]  # type: ignore[arg-type]
