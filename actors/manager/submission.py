"""Taking a new session in: everything that only the Manager can check, then the commit, then the answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from weakref import WeakValueDictionary

from actors.contracts import Rehearsed, SubmitRequest, Submitted
from backendai_ray.config import ManagerSettings
from backendai_ray.core.errors import (
    Conflict,
    IdempotencyMismatch,
    InsufficientResources,
    InvalidParameter,
    NameInUse,
    SessionNotFound,
)
from backendai_ray.core.ids import AccessKey, KernelId, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.sessions import ClusterMode, Kernel, Reason, Session, SessionSpec, Status
from backendai_ray.core.slots import ResourceSlots, total
from backendai_ray.records import to_plain
from backendai_ray.store import Batch, IdempotencyRecord

from .dependencies import Waiting, note_dependencies
from .journal import Journal
from .lookup import Lookup
from .nodes import Node
from .ports import Clock, ManagerStore, NewId
from .views import pending_session
from .world import World


class Submission:
    """Accepts sessions."""

    def __init__(
        self,
        settings: ManagerSettings,
        world: World,
        journal: Journal,
        store: ManagerStore,
        lookup: Lookup,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._settings = settings
        self._world = world
        self._journal = journal
        self._store = store
        self._lookup = lookup
        self._clock = clock
        self._new_id = new_id
        self._keys: WeakValueDictionary[tuple[AccessKey, str], asyncio.Lock] = WeakValueDictionary()
        self._names: dict[tuple[AccessKey, str], asyncio.Event] = {}
        """Names of sessions whose commit is under way."""

    async def submit(self, request: SubmitRequest) -> Submitted:
        """Take a session in, or return the one that the request led to before.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            InvalidParameter: resource group, gang size or a dependency is not usable.
            InsufficientResources: no node was ever seen that is large enough.
            NameInUse: a live session of the owner has the name, and it is not to be reused.
            QuotaExceeded: its owner has as many waiting sessions as he may.
            StoreUnavailable: nothing was taken in.
        """
        return await asyncio.shield(self._submit(request))

    async def rehearse(self, request: SubmitRequest) -> Rehearsed:
        """Check a draft as :meth:`submit` does, in the same order and with the same errors, and take nothing in."""
        spec = await self._with_dependency_ids(request.spec)
        holder = self._world.book.named(spec.access_key, spec.name)
        if holder is not None:
            return Rehearsed(reused=self._lookup.present(self._reuse(self._world.book.live[holder], request).session))
        self._check(spec)
        waiting = Waiting()  # one of its own, which nobody else sees
        await note_dependencies(waiting, self._world.book, self._store, spec)
        self._refuse_doomed(waiting, spec)
        draft = self._new_session(spec)
        expected_s = self._world.expected_s(spec)
        return Rehearsed(session=pending_session(draft, waiting_for=waiting.unmet(spec.id), expected_s=expected_s))

    async def _submit(self, request: SubmitRequest) -> Submitted:
        known = self._world.book.live.get(request.spec.id)
        if known is not None:
            return Submitted(session=known, created=True)
        if not request.idempotency_key:
            return await self._take_in(request, ())
        key = (request.spec.access_key, request.idempotency_key)
        lock = self._keys.setdefault(key, asyncio.Lock())
        async with lock:
            earlier = await self._earlier(request)
            return earlier or await self._take_in(request, (self._idempotency_record(request),))

    async def _earlier(self, request: SubmitRequest) -> Submitted | None:
        record = await self._store.idempotent(request.spec.access_key, request.idempotency_key)
        if record is None or record.expires_at <= self._clock() or record.session_id is None:
            return None
        if record.fingerprint != fingerprint(request):
            raise IdempotencyMismatch(
                "this idempotency key was used for another request; use a new key for a new request",
                session_id=record.session_id,
            )
        session = await self._lookup.get(record.session_id)
        return Submitted(session=session, created=session.id == request.spec.id)

    def _idempotency_record(self, request: SubmitRequest) -> IdempotencyRecord:
        now = self._clock()
        return IdempotencyRecord(
            access_key=request.spec.access_key,
            key=request.idempotency_key,
            fingerprint=fingerprint(request),
            session_id=request.spec.id,
            created_at=now,
            expires_at=now + self._settings.idempotency_ttl_s,
        )

    async def _take_in(self, request: SubmitRequest, records: tuple[IdempotencyRecord, ...]) -> Submitted:
        spec = await self._with_dependency_ids(request.spec)
        name = (spec.access_key, spec.name)
        while (under_way := self._names.get(name)) is not None:
            await under_way.wait()
        holder = self._world.book.named(*name)
        if holder is not None:
            return self._reuse(self._world.book.live[holder], request)
        self._check(spec)
        done = self._names[name] = asyncio.Event()
        self._world.allowances.enter_queue(spec)  # before the commit, so that many at once do not pass the limit
        try:
            await note_dependencies(self._world.waiting, self._world.book, self._store, spec)
            self._refuse_doomed(self._world.waiting, spec)
            session = await self._commit(spec, request.request_id, records)
        except BaseException:
            self._world.waiting.forget(spec.id)
            raise
        finally:
            taken_in = self._world.book.live.get(spec.id)
            if taken_in is None or taken_in.status is not Status.PENDING:
                self._world.allowances.leave_queue(spec)
            del self._names[name]
            done.set()
        await self._journal.cancel_doomed()
        return Submitted(session=self._lookup.present(session), created=True)

    async def _commit(self, spec: SessionSpec, cause: str, records: tuple[IdempotencyRecord, ...]) -> Session:
        session = self._new_session(spec)
        change = StatusChange(
            session_id=session.id,
            kernel_id=None,
            before=Status.PENDING,
            after=Status.PENDING,
            reason=Reason.SUBMITTED,
            message="",
            at=session.created_at,
            cause=cause,
        )
        try:
            await self._journal.commit(Batch(sessions=(session,), changes=(change,), idempotency=records))
        except NameInUse:
            raise
        except Conflict:
            known = await self._store.session(spec.id)  # the same request, repeated: it was taken in before
            if known is None:
                raise
            return known
        self._journal.take_effect(None, session)
        return session

    def _new_session(self, spec: SessionSpec) -> Session:
        now = self._clock()
        kernels = tuple(
            Kernel(id=KernelId(self._new_id()), role="main" if number == 0 else "sub", index=max(1, number))
            for number in range(spec.cluster_size)
        )
        return Session(spec=spec, kernels=kernels, created_at=now, status_at=now, message="waits for a place")

    @staticmethod
    def _reuse(session: Session, request: SubmitRequest) -> Submitted:
        name = session.spec.name
        if not request.reuse_if_exists:
            raise NameInUse(
                f"you have a live session named {name!r}; end it, choose another name, or ask to reuse it",
                session_id=session.id,
            )
        if session.spec.image != request.spec.image:
            raise NameInUse(
                f"your live session {name!r} runs {session.spec.image}, not {request.spec.image}; it cannot be reused",
                session_id=session.id,
            )
        return Submitted(session=session, created=False)

    # ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _check(self, spec: SessionSpec) -> None:
        if spec.resource_group not in self._world.groups:
            names = ", ".join(sorted(self._world.groups))
            raise InvalidParameter(
                f"scalingGroup: there is no resource group {spec.resource_group!r}; there are: {names}",
                field="scalingGroup",
            )
        limit = self._settings.max_cluster_size
        if not 1 <= spec.cluster_size <= limit:
            raise InvalidParameter(
                f"clusterSize: a session has 1 to {limit} kernels, not {spec.cluster_size}", field="clusterSize"
            )
        self._check_size(spec)
        self._world.allowances.check_queue(spec)

    @staticmethod
    def _refuse_doomed(waiting: Waiting, spec: SessionSpec) -> None:
        if why := waiting.doomed.get(spec.id, ""):
            raise InvalidParameter(f"dependencies: the session could never start: {why}", field="dependencies")

    def _check_size(self, spec: SessionSpec) -> None:
        """Refuse what no node of the group could ever hold, as far as nodes are known."""
        nodes = self._world.nodes.of_group(spec.resource_group)
        if not nodes:
            return
        together = spec.cluster_size if spec.cluster_mode is ClusterMode.SINGLE_NODE else 1
        needed = total([spec.slots] * together)
        if any(self._could_hold(node, spec.slots, together, needed) for node in nodes):
            return
        largest = min(nodes, key=lambda node: _badness(needed.shortfall(node.capacity), needed))
        short = needed.shortfall(largest.capacity)
        what = "the session's kernels together need" if together > 1 else "a kernel of the session needs"
        lacks = f"short by {_say(short)}" if short else "which is not in pieces of the right size"
        raise InsufficientResources(
            f"{what} {_say(needed)}; the largest node of {spec.resource_group} ({largest.agent_id}) "
            f"has {_say(largest.capacity)}: {lacks}",
            agent_id=largest.agent_id,
            shortfall=short.plain(),
        )

    def _could_hold(self, node: Node, slots: ResourceSlots, count: int, needed: ResourceSlots) -> bool:
        if node.report is None:  # known from before the last restart: only how much it has in all
            return needed.fits_in(node.capacity)
        return self._world.ledger.could_hold(node.agent_id, slots, count)

    async def _with_dependency_ids(self, spec: SessionSpec) -> SessionSpec:
        """Replace names by ids; every dependency is one of the owner's."""
        if not spec.depends_on:
            return spec
        found: dict[SessionId, None] = {}
        for dependency in spec.depends_on:
            try:
                session = await self._lookup.find(spec.access_key, dependency)
            except SessionNotFound:
                raise InvalidParameter(
                    f"dependencies: you have no session {dependency[:80]!r}", field="dependencies"
                ) from None
            found[session.id] = None
        return replace(spec, depends_on=tuple(found))


def fingerprint(request: SubmitRequest) -> str:
    """Return what makes two requests the same: everything that was asked for, but not the new id."""
    asked = to_plain(replace(request.spec, id=SessionId("")))
    if request.starts_at_as_given:
        asked["starts_at"] = request.starts_at_as_given
    text = json.dumps([asked, request.reuse_if_exists], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _badness(short: ResourceSlots, needed: ResourceSlots) -> float:
    return sum(units / needed.amount(name) for name, units in short.items())


def _say(slots: ResourceSlots) -> str:
    return ", ".join(f"{name} {amount}" for name, amount in slots.human().items()) or "nothing"
