"""A cluster in one process, to stand behind a front door in tests: it keeps the contracts, and does real little work.

Code runs in a thread of this process, batch commands in a shell, files lie in a temporary folder. Calls can be made to
fail: ``fail_next("agent.execute", AgentUnavailable(), times=2)``.
"""

from __future__ import annotations

import asyncio
import io
import queue
import subprocess
import tarfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from actors.contracts import (
    AgentStatus,
    AgentView,
    ExecuteRequest,
    FileEntry,
    Holding,
    Keypair,
    NodeDetail,
    QuotaView,
    Rehearsed,
    Route,
    SessionPage,
    SubmitRequest,
    Submitted,
    Transfer,
)
from actors.manager.views import pending_session
from backendai_ray.api import Services
from backendai_ray.bus import DomainEvent, Entry, Gap, names_of, parse_event_id
from backendai_ray.core.device_plugins import DeviceUsage
from backendai_ray.core.devices import Allocation, Device
from backendai_ray.core.errors import (
    AgentNotFound,
    BackendError,
    BusUnavailable,
    FileMissing,
    ImageNotFound,
    KernelNotFound,
    NameInUse,
    RunNotFound,
    SessionEnded,
    SessionNotFound,
    SessionNotReady,
    StaleRoute,
)
from backendai_ray.core.execution import ConsoleRecord, ExecMode, RunOutput, RunStatus
from backendai_ray.core.explanations import Explanation, Fragmentation, StartBasis, StartEstimate
from backendai_ray.core.ids import AccessKey, AgentId, DeviceId, KernelId, ResourceGroupName, SessionId
from backendai_ray.core.lifecycle import StatusChange
from backendai_ray.core.machine import Machine, Nic, NumaNode
from backendai_ray.core.measurements import KernelUsage, NodeUsage
from backendai_ray.core.proposals import Move, MoveRequest, Proposal
from backendai_ray.core.quotas import Limits, Scope, Use, scopes_of
from backendai_ray.core.runtimes import BUILT_IN, Runtime
from backendai_ray.core.scheduling import (
    KernelPlacement,
    NodeRefusal,
    PendingSession,
    Placement,
    Plan,
    Refusal,
    RefusalCode,
)
from backendai_ray.core.scheduling_history import SchedulingEntry, Verdict
from backendai_ray.core.sessions import Kernel, Reason, Session, SessionResult, SessionType, Status
from backendai_ray.core.slots import CPU, ResourceSlots, SlotName

USER = Keypair(
    access_key=AccessKey("AKIAUSER"),
    secret_key="user-secret",
    user="user@example.com",
    domain="default",
    project="default",
    is_active=True,
    is_admin=False,
)
ADMIN = replace(USER, access_key=AccessKey("AKIAADMIN"), secret_key="admin-secret", user="admin", is_admin=True)
INACTIVE = replace(USER, access_key=AccessKey("AKIAGONE"), is_active=False)
HOLD_IMAGE = "never-starts"
"""Sessions of this image stay PENDING."""
_NO_KERNEL = Kernel(id=KernelId(""), role="main", index=1)


class Faults:
    """Errors to be raised, and calls to be counted."""

    def __init__(self) -> None:
        self.calls: defaultdict[str, int] = defaultdict(int)
        self._planned: defaultdict[str, list[BaseException]] = defaultdict(list)

    def fail_next(self, call: str, error: BaseException, *, times: int = 1) -> None:
        self._planned[call] += [error] * times

    def on(self, call: str) -> None:
        self.calls[call] += 1
        if self._planned[call]:
            raise self._planned[call].pop(0)


class FakeManager:
    """Sessions in a dict; they run as soon as they are asked for."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.faults = cluster.faults
        self.keypairs = {k.access_key: k for k in (USER, ADMIN, INACTIVE)}
        self.kept: dict[SessionId, Session] = {}
        self.submissions: list[SubmitRequest] = []
        self.request_ids: list[str] = []
        self.quota_views: dict[Scope, QuotaView] = {}
        self._by_key: dict[str, SessionId] = {}

    async def keypair(self, access_key: str) -> Keypair | None:
        self.faults.on("manager.keypair")
        return self.keypairs.get(AccessKey(access_key))

    async def submit(self, request: SubmitRequest) -> Submitted:
        self.faults.on("manager.submit")
        self.submissions.append(request)
        if request.idempotency_key in self._by_key:
            return Submitted(session=self.kept[self._by_key[request.idempotency_key]], created=False)
        spec = request.spec
        for session in self._live(spec.access_key):
            if session.spec.name == spec.name:
                if request.reuse_if_exists:
                    return Submitted(session=session, created=False)
                raise NameInUse(f"name: {spec.name!r} is in use", field="name", session_id=session.id)
        kernels = tuple(
            Kernel(id=KernelId(str(uuid4())), role="main" if i == 0 else "sub", index=max(1, i))
            for i in range(spec.cluster_size)
        )
        now = time.time()
        session = Session(spec=spec, kernels=kernels, created_at=now, status_at=now)
        self.kept[session.id] = session
        self._by_key[request.idempotency_key] = session.id
        faults = self.faults
        faults.on("manager.submitted")
        if spec.image != HOLD_IMAGE:
            self.move(session.id, Status.SCHEDULED, Reason.PLACED)
            self.move(session.id, Status.PREPARING, Reason.PROGRESS)
            self.move(session.id, Status.RUNNING, Reason.STARTED)
            if spec.type is SessionType.BATCH:
                self._run_batch(session.id, spec.startup_command)
        return Submitted(session=session, created=True)

    def move(self, session_id: SessionId, status: Status, reason: Reason, **facts: Any) -> Session:
        """Move a session and all its kernels, and tell the stream."""
        before = self.kept[session_id]
        now = time.time()
        alive = status in (Status.PREPARING, Status.RUNNING, Status.SCHEDULED, Status.RESTARTING)
        kernels = tuple(
            replace(k, status=status, reason=reason, agent_id=self._cluster.agent.id if alive else k.agent_id)
            for k in before.kernels
        )
        after = replace(before, kernels=kernels, status=status, reason=reason, status_at=now, **facts)
        if status is Status.RUNNING:
            after = replace(after, started_at=now)
            self._cluster.agent.kernels[after.main.id] = after.epoch
        if after.is_terminal:
            after = replace(after, terminated_at=now)
            self._cluster.agent.kernels.pop(after.main.id, None)
        self.kept[session_id] = after
        for kernel_id in (*(k.id for k in kernels), None):
            self._cluster.events.publish(
                StatusChange(
                    session_id=session_id,
                    kernel_id=kernel_id,
                    before=before.status,
                    after=status,
                    reason=reason,
                    message=after.message,
                    at=now,
                    cause="test",
                )
            )
        return after

    def _run_batch(self, session_id: SessionId, command: str) -> None:
        done = subprocess.run(command, shell=True, capture_output=True, cwd=self._cluster.agent.folder, check=False)
        self._cluster.agent.log[session_id] = done.stdout + done.stderr
        succeeded = done.returncode == 0
        self.move(
            session_id,
            Status.TERMINATING,
            Reason.TASK_FINISHED if succeeded else Reason.TASK_FAILED,
            result=SessionResult.SUCCESS if succeeded else SessionResult.FAILURE,
            exit_code=done.returncode,
        )
        self.move(session_id, Status.TERMINATED, self.kept[session_id].reason)

    def _live(self, access_key: AccessKey) -> list[Session]:
        return [s for s in self.kept.values() if s.spec.access_key == access_key and not s.is_terminal]

    async def rehearse(self, request: SubmitRequest) -> Rehearsed:
        self.faults.on("manager.rehearse")
        for session in self._live(request.spec.access_key):
            if session.spec.name == request.spec.name:
                if not request.reuse_if_exists:
                    raise NameInUse(f"name: {request.spec.name!r} is in use")
                return Rehearsed(reused=session)
        kernels = tuple(Kernel(id=KernelId(f"k{i}"), role="main", index=1) for i in range(request.spec.cluster_size))
        return Rehearsed(session=pending_session(Session(spec=request.spec, kernels=kernels)))

    async def session(self, access_key: AccessKey, name_or_id: str) -> Session:
        self.faults.on("manager.session")
        mine = [s for s in self.kept.values() if s.spec.access_key == access_key]
        for session in reversed(mine):
            if session.id == name_or_id:
                return session
        named = [s for s in mine if s.spec.name == name_or_id]
        if not named:
            raise SessionNotFound(f"there is no session {name_or_id!r}")
        return next((s for s in named if not s.is_terminal), named[-1])

    async def sessions(
        self, access_key: AccessKey | None, *, statuses: Sequence[str], limit: int, offset: int
    ) -> SessionPage:
        self.faults.on("manager.sessions")
        found = [
            s
            for s in reversed(self.kept.values())
            if access_key in (None, s.spec.access_key) and (not statuses or s.status in statuses)
        ]
        return SessionPage(sessions=tuple(found[offset : offset + limit]), total=len(found))

    async def route(self, access_key: AccessKey, name_or_id: str) -> Route:
        self.faults.on("manager.route")
        session = await self.session(access_key, name_or_id)
        if session.is_terminal or session.status is Status.TERMINATING:
            raise SessionEnded(f"session {name_or_id} has ended: {session.reason}")
        if session.status is not Status.RUNNING:
            raise SessionNotReady(f"session {name_or_id} is {session.status}", status=session.status.value)
        return Route(
            session_id=session.id,
            kernel_id=session.main.id,
            agent_id=self._cluster.agent.id,
            epoch=session.epoch,
        )

    async def wait(self, session_id: SessionId, statuses: Sequence[str], timeout_s: float) -> Session:
        self.faults.on("manager.wait")
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            session = self.kept[session_id]
            if session.status in statuses or session.is_terminal:
                return session
            await asyncio.sleep(0.01)
        return self.kept[session_id]

    async def terminate(
        self, access_key: AccessKey, name_or_id: str, *, forced: bool, recursive: bool, request_id: str
    ) -> Session:
        self.faults.on("manager.terminate")
        self.request_ids.append(request_id)
        session = await self.session(access_key, name_or_id)
        if session.is_terminal:
            return session
        if session.status is Status.PENDING:
            return self.move(session.id, Status.CANCELLED, Reason.USER_REQUESTED)
        reason = Reason.FORCED if forced else Reason.USER_REQUESTED
        self.move(session.id, Status.TERMINATING, reason)
        return self.move(session.id, Status.TERMINATED, reason)

    async def restart(self, access_key: AccessKey, name_or_id: str, *, request_id: str) -> Session:
        self.faults.on("manager.restart")
        self.request_ids.append(request_id)
        session = await self.session(access_key, name_or_id)
        self.kept[session.id] = replace(session, epoch=session.epoch + 1)
        self.move(session.id, Status.RESTARTING, Reason.RESTART)
        return self.move(session.id, Status.RUNNING, Reason.STARTED)

    async def rename(self, access_key: AccessKey, name_or_id: str, name: str, *, request_id: str) -> Session:
        self.faults.on("manager.rename")
        self.request_ids.append(request_id)
        session = await self.session(access_key, name_or_id)
        renamed = replace(session, spec=replace(session.spec, name=name), epoch=session.epoch + 1)
        self.kept[session.id] = renamed
        self._cluster.agent.kernels[session.main.id] = renamed.epoch
        return renamed

    async def history(self, session_id: SessionId) -> Sequence[StatusChange]:
        return [change for change in self._cluster.events.changes if change.session_id == session_id]

    async def scheduling_history(self, session_id: SessionId) -> Sequence[SchedulingEntry]:
        refused = SchedulingEntry(
            session_id=session_id, number=1, verdict=Verdict.REFUSED, code="not-enough", message="no", at=1.0, cause="p"
        )
        return [refused]

    async def logs(self, access_key: AccessKey, name_or_id: str, kernel_id: KernelId | None) -> bytes:
        session = await self.session(access_key, name_or_id)
        return self._cluster.agent.log.get(session.id, b"nothing yet\n")

    async def dependency_graph(self, access_key: AccessKey, name_or_id: str) -> Mapping[str, Any]:
        session = await self.session(access_key, name_or_id)
        return {
            "session_id": session.id,
            "session_name": session.spec.name,
            "status": session.status.value,
            "status_changed": session.status_at,
            "depends_on": [await self.dependency_graph(access_key, d) for d in session.spec.depends_on],
        }

    async def agent(self, agent_id: AgentId) -> NodeDetail:
        self.faults.on("manager.agent")
        if agent_id != self._cluster.agent.id:
            raise AgentNotFound(f"there is no node {agent_id!r}")
        (view,) = await self.agents()
        return NodeDetail(
            view=view,
            devices=self._cluster.agent.devices,
            machine=Machine(numa_nodes=(NumaNode(id=0, socket="0", cpus=(0, 1)),), nics=(Nic(name="eth0"),)),
            images=("python",),
            labels={"isolation": "full"},
            notes=("one thing is not as it could be",),
            holdings=tuple(
                Holding(
                    kernel_id=session.main.id,
                    session_id=session.id,
                    session_name=session.spec.name,
                    access_key=session.spec.access_key,
                    hostname="main1",
                    status=session.status,
                    allocation=Allocation.of([(CPU, DeviceId("0"), 1000)]),
                )
                for session in self.kept.values()
                if session.status is Status.RUNNING
            ),
        )

    async def agents(self) -> Sequence[AgentView]:
        return [
            AgentView(
                agent_id=self._cluster.agent.id,
                status=AgentStatus.ALIVE,
                resource_group=ResourceGroupName("default"),
                architecture="x86_64",
                backend="process",
                capacity={"cpu": 8000, "mem": 2**34},
                occupied={"cpu": 1000},
                schedulable=True,
                message="",
                first_contact=1.0,
                lost_at=None,
            )
        ]

    async def quotas(self, access_key: AccessKey | None) -> Sequence[QuotaView]:
        self.faults.on("manager.quotas")
        mine = None if access_key is None else set(scopes_of(USER))
        return [view for scope, view in self.quota_views.items() if mine is None or scope in mine]

    async def set_quota(self, scope: Scope, limits: Limits) -> QuotaView:
        self.faults.on("manager.set_quota")
        self.quota_views.pop(scope, None)
        view = QuotaView(scope=scope, limits=limits, used=Use({"cpu": 1500}, 2), waiting=1)
        if limits:
            self.quota_views[scope] = view
        return view

    async def groups(self) -> Mapping[ResourceGroupName, Mapping[str, Any]]:
        self.faults.on("manager.groups")
        return {ResourceGroupName("default"): {"policy": "fifo", "selection": "concentrated", "options": {}}}


class FakeSokovan:
    """Refuses all sessions but small ones, and says why."""

    async def wake(self, group: ResourceGroupName, why: str) -> None:
        del group, why

    async def explain(self, group: ResourceGroupName, session_id: SessionId) -> Explanation:
        del group
        node = NodeRefusal(AgentId("node-1"), RefusalCode.NOT_ENOUGH, "cpu: 1 missing", ResourceSlots({"cpu": 1000}))
        message = "no node has 1 core free"
        return Explanation(
            outcome=Refusal(session_id, RefusalCode.NOT_ENOUGH, message, (node,), 2, SessionId("first")),
            position=3,
            waiting=5,
            closest=node,
            fragmentation=Fragmentation.ACROSS_NODES,
            estimate=StartEstimate(basis=StartBasis.TIME_LIMITS, at=1e9, message="at its time"),
            policy="fifo",
        )

    async def propose_moves(self, group: ResourceGroupName, request: MoveRequest, *, apply: bool) -> Proposal:
        """Move one session of the owner's, whom an administrator calls by no name."""
        del group
        moved = SessionId(f"of-{request.owner or 'anybody'}")
        moves = (Move(moved, (AgentId("node-1"),), (AgentId("node-2"),), request.min_runtime_s),)
        kernel = KernelPlacement(KernelId("k"), AgentId("node-1"), Allocation())
        plan = Plan(nominations=(Placement(request.session_id, 1, (kernel,)),))
        return Proposal(request.session_id, plan, moves[: request.max_moves], "it can start", apply)

    async def stats(self) -> Mapping[str, Mapping[str, Any]]:
        return {"default": {"waiting": 2, "warning": "policy custom failed; fifo decides in its place"}}

    async def rehearse(self, group: ResourceGroupName, session: PendingSession) -> Explanation:
        if session.slots.amount("cpu") > 1000:
            return await self.explain(group, session.id)
        allocation = Allocation((("cpu", DeviceId("0"), 1000),))
        placement = Placement(session.id, 0, (KernelPlacement(session.kernel_ids[0], AgentId("node-1"), allocation),))
        now = StartEstimate(basis=StartBasis.NOW, at=1e9, message="there is room for it now")
        return Explanation(outcome=placement, waiting=1, estimate=now, policy="fifo")


@dataclass
class FakeRun:
    """One run in a thread."""

    id: str
    records: list[ConsoleRecord] = field(default_factory=list)
    inputs: queue.Queue[str] = field(default_factory=queue.Queue)
    is_waiting: bool = False
    exit_code: int | None = None
    handed_out: int = 0
    news: threading.Event = field(default_factory=threading.Event)

    def write(self, stream: str, text: str) -> None:
        self.records.append((stream, text))
        self.news.set()

    def ask(self, prompt: str = "") -> str:
        self.write("stdout", prompt)
        self.is_waiting = True
        self.news.set()
        return self.inputs.get(timeout=30)

    def end(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.news.set()


class FakeAgent:
    """One kernel per session, all in this process."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        self.id = AgentId("node-1")
        self.devices = (
            Device(CPU, DeviceId("0"), 1000, numa_node=0),
            Device(SlotName("cuda.device"), DeviceId("GPU-a"), 1000, 0, "H100", {"pcie": "a/s", "index": "0"}),
            Device(SlotName("cuda.device"), DeviceId("GPU-b"), 1000, 0, "H100", {"pcie": "a/s", "index": "1"}),
        )
        self.folder = folder
        self.faults = faults
        self.kernels: dict[KernelId, int] = {}
        self.runs: dict[str, FakeRun] = {}
        self.requests: list[ExecuteRequest] = []
        self.log: dict[SessionId, bytes] = {}
        self.partial: dict[str, io.BytesIO] = {}
        self.partial_bytes: dict[str, int] = {}
        self.keep_uploads = True
        self.aborted: list[str] = []
        self.interrupts = 0
        self.transfers: dict[str, bytes] = {}
        self.ptys: dict[str, bytearray] = {}
        self.pty_sizes: list[tuple[int, int]] = []
        self.closed_ptys: list[str] = []
        self._names: dict[KernelId, dict[str, Any]] = defaultdict(dict)

    async def usage(self, kernel_ids: Sequence[KernelId] | None = None) -> NodeUsage:
        self.faults.on("agent.usage")
        kernels = [
            KernelUsage(
                kernel_id=kernel_id,
                session_id=SessionId("s"),
                session_name='with "quotes"',
                hostname="main1",
                measured_at=1000.0,
                cpu_ns=1_500_000_000,
                cpu_used=0.5,
                memory_bytes=2**20,
                advisory=(SlotName("cuda.shares"),),
            )
            for kernel_id in (self.kernels if kernel_ids is None else kernel_ids)
        ]
        gpu = DeviceUsage(slot=SlotName("cuda.device"), id=DeviceId("GPU-a"), utilization=0.25, memory_used=2**30)
        return NodeUsage(
            agent_id=self.id, measured_at=1000.0, memory_bytes=2**30, devices=(gpu,), kernels=tuple(kernels), rounds=3
        )

    def _check(self, call: str, route: Route) -> None:
        self.faults.on(f"agent.{call}")
        if route.kernel_id not in self.kernels:
            raise KernelNotFound(f"there is no kernel {route.kernel_id}")
        if route.epoch < self.kernels[route.kernel_id]:
            raise StaleRoute(f"epoch {route.epoch} has passed")

    async def execute(self, request: ExecuteRequest) -> RunOutput:
        self._check("execute", request.route)
        self.requests.append(request)
        run = self.runs.get(request.run_id)
        if run is None:
            if request.mode in (ExecMode.CONTINUE, ExecMode.INPUT):
                raise RunNotFound(f"there is no run {request.run_id}")
            run = self.runs[request.run_id] = FakeRun(request.run_id)
            self._start(run, request)
        elif request.mode is ExecMode.INPUT:
            run.is_waiting = False
            run.inputs.put(request.code)
        await asyncio.to_thread(self._wait, run, request.wait_s)
        after = run.handed_out if request.after_seq is None else request.after_seq
        records = tuple(run.records[after:])
        run.handed_out = after + len(records)
        self.faults.on("agent.executed")
        options: dict[str, object] = {}
        status = RunStatus.CONTINUED
        if run.exit_code is not None:
            status = RunStatus.FINISHED
        elif run.is_waiting:
            status, options = RunStatus.WAITING_INPUT, {"is_password": False}
        return RunOutput(run.id, status, records, run.handed_out, run.exit_code, options)

    def _wait(self, run: FakeRun, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while run.exit_code is None and not run.is_waiting and time.monotonic() < deadline:
            run.news.wait(max(0.0, deadline - time.monotonic()))
            run.news.clear()

    def _start(self, run: FakeRun, request: ExecuteRequest) -> None:
        target: Callable[..., None] = self._query
        if request.mode is ExecMode.BATCH:
            target = self._batch
        threading.Thread(target=target, args=(run, request), daemon=True).start()

    def _query(self, run: FakeRun, request: ExecuteRequest) -> None:
        names = self._names[request.route.kernel_id]
        names["print"] = lambda *a, end="\n", **_: run.write("stdout", " ".join(map(str, a)) + end)
        names["input"] = run.ask
        names["emit"] = run.write
        try:
            try:
                value = eval(request.code, names)
                if value is not None:
                    run.write("stdout", f"{value!r}\n")
            except SyntaxError:
                exec(request.code, names)
        except BaseException:  # noqa: BLE001 - whatever the user's code raises
            run.write("stderr", traceback.format_exc())
            run.end(1)
        else:
            run.end(0)

    def _batch(self, run: FakeRun, request: ExecuteRequest) -> None:
        command = str(request.options.get("exec") or "true")
        if command == "*":
            command = f"python3 {request.options.get('main', 'main.py')}"
        done = subprocess.run(command, shell=True, capture_output=True, cwd=self.folder, text=True, check=False)
        for stream, text in (("stdout", done.stdout), ("stderr", done.stderr)):
            if text:
                run.write(stream, text)
        run.end(done.returncode)

    async def runtimes(self, image: str) -> Sequence[Runtime]:
        self.faults.on("agent.runtimes")
        if image != "r":
            raise ImageNotFound(f"the node does not have the image {image!r}")
        return [Runtime(name="ir", language="R", title="R"), *BUILT_IN]

    async def complete(self, route: Route, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        self._check("complete", route)
        return [code + "_one", code + str(options.get("col", ""))]

    async def interrupt(self, route: Route) -> None:
        self._check("interrupt", route)
        self.interrupts += 1

    async def list_files(self, route: Route, path: str) -> Sequence[FileEntry]:
        self._check("list_files", route)
        folder = self.folder / path
        if not folder.is_dir():
            raise FileMissing(f"path: there is no folder {path!r}", field="path")
        return [
            FileEntry(
                name=entry.name,
                kind="dir" if entry.is_dir() else "file",
                size=entry.stat().st_size,
                mode="-rw-r--r--",
                modified_at=entry.stat().st_mtime,
            )
            for entry in sorted(folder.iterdir())
        ]

    async def write_file(self, route: Route, path: str, offset: int, data: bytes, *, final: bool) -> None:
        self._check("write_file", route)
        if not self.keep_uploads:
            assert offset == self.partial_bytes.get(path, 0)
            self.partial_bytes[path] = offset + len(data)
            return
        buffer = self.partial.setdefault(path, io.BytesIO())
        buffer.seek(offset)
        buffer.write(data)
        if final:
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.partial.pop(path).getvalue())

    async def abort_write(self, route: Route, path: str) -> None:
        self._check("abort_write", route)
        self.aborted.append(path)
        self.partial.pop(path, None)
        self.partial_bytes.pop(path, None)

    async def open_download(self, route: Route, paths: Sequence[str], *, archive: bool) -> Transfer:
        self._check("open_download", route)
        for path in paths:
            if not (self.folder / path).exists():
                raise FileMissing(f"there is no file {path!r}", path=path)
        if archive:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for path in paths:
                    tar.add(self.folder / path, arcname=path)
            content = packed.getvalue()
        else:
            content = (self.folder / paths[0]).read_bytes()
        transfer_id = uuid4().hex
        self.transfers[transfer_id] = content
        return Transfer(id=transfer_id, size=len(content))

    async def read_download(self, transfer_id: str, offset: int, size: int) -> bytes:
        self.faults.on("agent.read_download")
        return self.transfers[transfer_id][offset : offset + size]

    async def close_download(self, transfer_id: str) -> None:
        del self.transfers[transfer_id]

    async def open_pty(self, route: Route, *, rows: int, cols: int, pty_id: str) -> None:
        self._check("open_pty", route)
        self.pty_sizes.append((rows, cols))
        self.ptys.setdefault(pty_id, bytearray(b"$ "))

    async def read_pty(self, route: Route, pty_id: str, after_seq: int, wait_s: float) -> tuple[int, bytes, bool]:
        self._check("read_pty", route)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            output = self.ptys.get(pty_id)
            if output is None:
                return after_seq, b"", True
            if len(output) > after_seq:
                return len(output), bytes(output[after_seq:]), output.endswith(b"exit\n")
            await asyncio.sleep(0.005)
        return after_seq, b"", False

    async def write_pty(self, route: Route, pty_id: str, data: bytes) -> None:
        self._check("write_pty", route)
        self.ptys[pty_id] += data

    async def resize_pty(self, route: Route, pty_id: str, *, rows: int, cols: int) -> None:
        self._check("resize_pty", route)
        self.pty_sizes.append((rows, cols))

    async def close_pty(self, route: Route, pty_id: str) -> None:
        self._check("close_pty", route)
        self.ptys.pop(pty_id, None)
        self.closed_ptys.append(pty_id)


class FakeEvents:
    """The stream of events, in a list."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.changes: list[StatusChange] = []
        self.entries: list[Entry] = []

    def publish(self, change: StatusChange) -> None:
        self.changes.append(change)
        spec = self._cluster.manager.kept[change.session_id].spec
        for part, name in enumerate(names_of(change)):
            event = DomainEvent(
                name=name,
                number=len(self.changes),
                part=part,
                session_id=spec.id,
                session_name=spec.name,
                kernel_id=change.kernel_id,
                access_key=spec.access_key,
                domain=spec.domain,
                project=spec.project,
                user=spec.user,
                before=change.before,
                status=change.after,
                reason=change.reason,
                message=change.message,
                at=change.at,
                cause=change.cause,
            )
            self.entries.append(Entry(event.id, event))

    async def ends(self) -> tuple[str, str] | None:
        self._cluster.faults.on("events.ends")
        return (self.entries[0].id, self.entries[-1].id) if self.entries else None

    async def tail(self, after: str | None = None, *, idle_s: float = 15.0) -> AsyncIterator[Entry | Gap | None]:
        position = (parse_event_id(after) if after else None) or (0, 0)
        index = 0
        while True:
            try:
                self._cluster.faults.on("events.tail")
            except BusUnavailable:
                yield None
            patience = time.monotonic() + idle_s
            while index >= len(self.entries) and time.monotonic() < patience:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if index >= len(self.entries):
                yield None
                continue
            entry = self.entries[index]
            index += 1
            if (entry.event.number, entry.event.part) > position:
                yield entry


class FakeCluster:
    """All peers of a front door."""

    def __init__(self, folder: Path) -> None:
        self.faults = Faults()
        self.events = FakeEvents(self)
        self.agent = FakeAgent(folder, self.faults)
        self.manager = FakeManager(self)
        self.sokovan = FakeSokovan()

    def services(self) -> Services:
        manager: Any = self.manager
        agent: Any = self.agent
        return Services(manager=manager, agent=lambda _: agent, sokovan=self.sokovan, events=self.events)

    def fail_next(self, call: str, error: BackendError | Exception, *, times: int = 1) -> None:
        self.faults.fail_next(call, error, times=times)
