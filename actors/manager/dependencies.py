"""Sessions that wait for others to succeed.

A batch session succeeds when its command ends with exit code 0. A session of another type has no verdict of its own:
it counts as a success when it ends as TERMINATED, whoever ended it, and as a failure when it ends as ERROR or
CANCELLED. A failed dependency cancels what waits for it, but for those that asked to start anyway: for them every end
will do.
"""

from __future__ import annotations

from backendai_ray.core.ids import SessionId
from backendai_ray.core.sessions import DependencyFailure, Session, SessionResult, SessionSpec, SessionType, Status

from .book import Book
from .ports import ManagerStore


def succeeded(session: Session) -> bool:
    """Return whether an ended session lets those go on that wait for it."""
    if session.spec.type is SessionType.BATCH:
        return session.result is SessionResult.SUCCESS
    return session.status is Status.TERMINATED


def failure_sentence(session: Session) -> str:
    """Return what a dependent is told when this session has not succeeded."""
    why = session.message or session.reason.value
    return f"it depends on {session.spec.name}, which ended as {session.status} ({why})"


class Waiting:
    """Which pending sessions wait for which, and which can never start."""

    def __init__(self) -> None:
        self._unmet: dict[SessionId, dict[SessionId, None]] = {}
        self._dependents: dict[SessionId, set[SessionId]] = {}
        self._start_anyway: set[SessionId] = set()
        self._met_at: dict[SessionId, float] = {}
        self.doomed: dict[SessionId, str] = {}
        """Sessions to be cancelled, with the sentence that says why."""

    def add(self, session_id: SessionId, depends_on: tuple[SessionId, ...], *, start_anyway: bool = False) -> None:
        """Note a session whose dependencies have all not ended yet."""
        if not depends_on:
            return
        self._unmet[session_id] = dict.fromkeys(depends_on)
        if start_anyway:
            self._start_anyway.add(session_id)
        for dependency in depends_on:
            self._dependents.setdefault(dependency, set()).add(session_id)

    def forget(self, session_id: SessionId) -> None:
        """The session does not wait any more, whatever for."""
        for dependency in self._unmet.pop(session_id, ()):
            self._drop_edge(dependency, session_id)
        self._start_anyway.discard(session_id)
        self._met_at.pop(session_id, None)
        self.doomed.pop(session_id, None)

    def met_at(self, session_id: SessionId) -> float:
        """Return when the last of its dependencies that have ended did so, in Unix seconds; 0 without any."""
        return self._met_at.get(session_id, 0.0)

    def unmet(self, session_id: SessionId) -> tuple[SessionId, ...]:
        """Return what the session still waits for."""
        return tuple(self._unmet.get(session_id, ()))

    def dependents(self, session_id: SessionId) -> list[SessionId]:
        """Return what waits for the session."""
        return sorted(self._dependents.get(session_id, ()))

    def all_dependents(self, session_id: SessionId) -> list[SessionId]:
        """Return what waits for the session, directly or not; whoever waits comes before what it waits for."""
        order: list[SessionId] = []
        seen: set[SessionId] = set()
        stack = [(session_id, False)]
        while stack:
            current, is_done = stack.pop()
            if is_done:
                order.append(current)
            elif current not in seen:
                seen.add(current)
                stack.append((current, True))
                stack.extend((dependent, False) for dependent in self.dependents(current))
        return order[:-1]

    def ended(self, session: Session) -> list[SessionId]:
        """Take in the end of a session; returns those that wait for one thing less.

        When it was no success, its dependents are doomed instead, but for those that start anyway.
        """
        released = []
        for dependent in self.dependents(session.id):
            if succeeded(session) or dependent in self._start_anyway:
                self._meet(dependent, session.id, session.terminated_at)
                released.append(dependent)
            else:
                self.doomed.setdefault(dependent, failure_sentence(session))
        return released

    def settle(self, session_id: SessionId, dependency: SessionId, ended: Session | None) -> None:
        """Take in a dependency that had ended before the session was noted; ``None``: nothing is known of it."""
        if session_id in self._start_anyway or (ended is not None and succeeded(ended)):
            self._meet(session_id, dependency, None if ended is None else ended.terminated_at)
        elif ended is not None:
            self.doomed.setdefault(session_id, failure_sentence(ended))
        else:
            self.doomed.setdefault(session_id, f"it depends on session {dependency}, which is not there any more")

    def _meet(self, session_id: SessionId, dependency: SessionId, at: float | None) -> None:
        self._unmet.get(session_id, {}).pop(dependency, None)
        self._met_at[session_id] = max(self.met_at(session_id), at or 0.0)
        self._drop_edge(dependency, session_id)

    def _drop_edge(self, dependency: SessionId, dependent: SessionId) -> None:
        dependents = self._dependents.get(dependency)
        if dependents is not None:
            dependents.discard(dependent)
            if not dependents:
                del self._dependents[dependency]


async def note_dependencies(waiting: Waiting, book: Book, store: ManagerStore, session: SessionSpec) -> None:
    """Note what a session waits for, whether that still lives or has ended already.

    Raises:
        StoreUnavailable: it cannot be found out now; nothing is noted then.
    """
    start_anyway = session.dependency_failure is DependencyFailure.START_ANYWAY
    waiting.add(session.id, session.depends_on, start_anyway=start_anyway)  # first: an end from now on is not missed
    try:
        for dependency in session.depends_on:
            if dependency not in book.live:
                waiting.settle(session.id, dependency, await store.session(dependency))
    except BaseException:
        waiting.forget(session.id)
        raise
