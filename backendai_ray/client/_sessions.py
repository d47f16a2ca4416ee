"""Sessions: asking for them and finding them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack
from urllib.parse import quote

from backendai_ray.client._creation import Amount, Creation, creation_body
from backendai_ray.client._handle import AsyncSession
from backendai_ray.client._models import Explanation, SessionInfo, SessionPage
from backendai_ray.core.errors import BackendError, InvalidParameter
from backendai_ray.core.sessions import TERMINAL, ClusterMode, DependencyFailure, SessionType, Status

if TYPE_CHECKING:
    from backendai_ray.client._transport import Transport

LIVE = tuple(str(s) for s in Status if s not in TERMINAL)
"""The statuses of sessions that have not ended."""


class AsyncSessions:
    """What a client does with sessions as a whole."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create(
        self,
        image: str,
        *,
        name: str | None = None,
        type: SessionType | str = SessionType.INTERACTIVE,  # noqa: A002 - the API's word for it
        cpu: Amount = 1,
        mem: Amount = "512m",
        resources: Mapping[str, Amount] | None = None,
        shmem: Amount | None = None,
        cluster_size: int = 1,
        cluster_mode: ClusterMode | str = ClusterMode.SINGLE_NODE,
        env: Mapping[str, str] | None = None,
        startup_command: str | None = None,
        bootstrap_script: str | None = None,
        runtime: str | None = None,
        batch_timeout_s: float | None = None,
        priority: int | None = None,
        requeue: bool | None = None,
        starts_at: str | None = None,
        depends_on: Sequence[str] = (),
        dependency_failure: DependencyFailure | str = DependencyFailure.CANCEL,
        pending_timeout_s: float | None = None,
        resource_group: str | None = None,
        agents: Sequence[str] = (),
        preopen_ports: Sequence[int] = (),
        callback_url: str | None = None,
        tag: str | None = None,
        reuse: bool = False,
        wait: bool = True,
        timeout: float | None = None,
        on_progress: Callable[[SessionInfo], None] | None = None,
    ) -> AsyncSession:
        """Ask for a session.

        Args:
            image: An image, or a short name for one such as ``python``.
            name: Unique among your live sessions; made up when not given.
            type: ``interactive``, or ``batch`` (which runs ``startup_command`` and ends).
            cpu: Cores of each container.
            mem: Memory of each container, such as ``"512m"`` or ``"4g"``.
            resources: Further slots of each container, such as ``{"cuda.device": 1}``.
            shmem: Size of ``/dev/shm``.
            cluster_size: How many containers; they reach each other as ``main1``, ``sub1``, ``sub2``, …
            cluster_mode: ``single-node`` or ``multi-node``.
            env: Environment variables.
            startup_command: The shell command of a batch session.
            bootstrap_script: Run in each container before anything else.
            runtime: What runs its cells: ``python``, ``shell``, or a Jupyter kernel of the image such as ``ir``.
            batch_timeout_s: How long the startup command may take.
            priority: Higher starts earlier.
            requeue: Whether it may be ended and run again from its beginning when a more important session needs the
                room; ``None``: batch sessions may.
            starts_at: Not before this ISO 8601 date, or so long from now, such as ``"2h"``.
            depends_on: Sessions that must succeed first.
            dependency_failure: When one of them fails: ``cancel`` this session, or ``start-anyway``.
            pending_timeout_s: Cancel it when it has waited so long for a place; ``None``: as its resource group says.
            resource_group: The set of nodes to run on.
            agents: Run on these nodes only.
            preopen_ports: Ports of the containers to publish.
            callback_url: Called with every change of status.
            tag: A word of yours.
            reuse: Return the live session of that name if there is one, instead of failing.
            wait: Return only when it runs (a batch session may have ended by then).
            timeout: How many seconds to wait; ``None``: as long as it takes.
            on_progress: Called with the session whenever its status changes while waiting.

        Raises:
            InvalidParameter: the server refuses a field; ``details["field"]`` names it.
            NameInUse: a live session has the name.
            InsufficientResources: no node is large enough.
            KernelStartFailed, ImageNotFound: it could not start.
            RequestTimeout: it did not run in time. Whenever waiting fails, the session is ended again.
        """
        body = creation_body(
            image,
            name=name,
            type=type,
            cpu=cpu,
            mem=mem,
            resources=resources,
            shmem=shmem,
            cluster_size=cluster_size,
            cluster_mode=cluster_mode,
            env=env,
            startup_command=startup_command,
            bootstrap_script=bootstrap_script,
            runtime=runtime,
            batch_timeout_s=batch_timeout_s,
            priority=priority,
            requeue=requeue,
            starts_at=starts_at,
            depends_on=depends_on,
            dependency_failure=dependency_failure,
            pending_timeout_s=pending_timeout_s,
            resource_group=resource_group,
            agents=agents,
            preopen_ports=preopen_ports,
            callback_url=callback_url,
            tag=tag,
            reuse=reuse,
        )
        session = await self._submit(body)
        if wait:
            await self._start(session, timeout, on_progress)
        return session

    async def dry_run(self, image: str, **asked: Unpack[Creation]) -> Explanation:
        """Return where a session would go if it were asked for now, or why it would wait and for how long.

        Args:
            image: As for :meth:`create`.
            asked: As for :meth:`create`, but for what is about waiting for the session.

        Raises:
            InvalidParameter, NameInUse, InsufficientResources: :meth:`create` would be refused for the same reason.
        """
        body = creation_body(image, **asked)
        return Explanation.model_validate(await self._transport.json("POST", "/session/_/dry-run", body=body))

    async def get(self, name_or_id: str) -> AsyncSession:
        """Return a handle to the session of that name or id.

        Raises:
            SessionNotFound: you have none like this.
        """
        if not name_or_id:
            raise InvalidParameter("name: give a session's name or id", field="name")
        found = SessionInfo.model_validate(await self._transport.json("GET", f"/session/{quote(name_or_id, safe='')}"))
        return AsyncSession(self._transport, found.id, found.name)

    async def list(
        self, *, statuses: Sequence[Status | str] | None = None, limit: int = 50, offset: int = 0
    ) -> SessionPage:
        """Return some of your sessions, newest first; without ``statuses`` those that have not ended."""
        wanted = LIVE if statuses is None else statuses
        params: dict[str, str | int] = {"status": ",".join(map(str, wanted)), "limit": limit, "offset": offset}
        return SessionPage.model_validate(await self._transport.json("GET", "/session", params=params))

    async def iterate(
        self, *, statuses: Sequence[Status | str] | None = None, page_size: int = 100
    ) -> AsyncIterator[SessionInfo]:
        """Yield all of your sessions, newest first, page by page."""
        seen: set[str] = set()
        offset = 0
        while True:
            page = await self.list(statuses=statuses, limit=page_size, offset=offset)
            for info in page.items:
                if info.id not in seen:  # new sessions push older ones onto the next page
                    seen.add(info.id)
                    yield info
            offset += page_size
            if offset >= page.total or not page.items:
                return

    async def _submit(self, body: Mapping[str, Any]) -> AsyncSession:
        asking = asyncio.ensure_future(self._transport.json("POST", "/session", body=body))
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            # It may be there already, and nobody would know of it.
            await self._handle(body, await asking).abandon_if_created()
            raise
        return self._handle(body, answer)

    def _handle(self, body: Mapping[str, Any], answer: Mapping[str, Any]) -> AsyncSession:
        return AsyncSession(
            self._transport,
            answer["sessionId"],
            answer.get("sessionName") or str(body["name"]),
            created=bool(answer.get("created", True)),
        )

    async def _start(
        self, session: AsyncSession, timeout: float | None, on_progress: Callable[[SessionInfo], None] | None
    ) -> None:
        try:
            await session.wait(Status.RUNNING, timeout=timeout, on_progress=on_progress)
        except (BackendError, asyncio.CancelledError):
            await asyncio.shield(session.abandon_if_created())  # the caller has no handle to it yet
            raise
