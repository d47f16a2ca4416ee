"""Finding the session that a person means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.contracts import SessionPage
from backendai_ray.core.errors import SessionNotFound
from backendai_ray.core.ids import AccessKey, SessionId
from backendai_ray.core.sessions import STARTING, Reason, Session, Status

from .graph import dependency_graph
from .ports import ManagerStore
from .world import World


class Lookup:
    """Answers from memory what it can, and from the store the rest."""

    def __init__(self, world: World, store: ManagerStore) -> None:
        self._world = world
        self._store = store

    async def find(self, access_key: AccessKey, name_or_id: str) -> Session:
        """Return the live session of that name, or any session by name, id or beginning of its id.

        Raises:
            SessionNotFound: the owner has no such session.
            InvalidParameter: several ids begin like this.
        """
        live_id = self._world.book.named(access_key, name_or_id)
        session = self._world.book.live.get(live_id or SessionId(name_or_id.lower()))
        if session is None or session.spec.access_key != access_key:
            session = await self._store.find(access_key, name_or_id)
        if session is None:
            raise SessionNotFound(f"you have no session named {name_or_id[:80]!r}", name=name_or_id[:80])
        return self.present(session)

    async def get(self, session_id: SessionId) -> Session:
        """Return a session by its id, whoever owns it.

        Raises:
            SessionNotFound: there is none.
        """
        session = self._world.book.live.get(session_id) or await self._store.session(session_id)
        if session is None:
            raise SessionNotFound(f"there is no session {session_id[:80]!r}", session_id=session_id[:80])
        return self.present(session)

    async def page(self, access_key: AccessKey | None, statuses: Sequence[str], limit: int, offset: int) -> SessionPage:
        """Return some sessions, newest first."""
        sessions, total = await self._store.page(access_key, statuses, limit, offset)
        return SessionPage(sessions=tuple(self.present(session) for session in sessions), total=total)

    def present(self, session: Session) -> Session:
        """Return the newest record; a session that waits says why, and one that starts how far it is."""
        live = self._world.book.live.get(session.id)
        if live is not None and live.version >= session.version:
            session = live
        if session.status in STARTING and (note := self._world.notes.get(session.id, "")):
            return replace(session, message=note)
        if session.status is not Status.PENDING:
            return session
        unmet = self._world.waiting.unmet(session.id)
        note = f"waits for {len(unmet)} other sessions" if unmet else self._world.notes.get(session.id, "")
        return replace(session, reason=Reason.WAITING, message=note) if note else session

    async def dependency_graph(self, root: Session) -> dict[str, Any]:
        """Return a session and what it depends on, nested; see :func:`.graph.dependency_graph`."""
        return await dependency_graph(root, self._whatever_its_age)

    async def _whatever_its_age(self, session_id: SessionId) -> Session | None:
        return self._world.book.live.get(session_id) or await self._store.session(session_id)
