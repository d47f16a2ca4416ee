"""A server of our own making that speaks the wire format, for tests of the client and of ``bai``; no network.

It keeps sessions in memory, checks signatures, remembers idempotency keys, numbers the output of runs and can be told
to misbehave: :meth:`FakeServer.fail_next`, :meth:`FakeServer.lose_next_answer`.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import tarfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import httpx

from backendai_ray.client._signing import sign_request
from backendai_ray.core.errors import (
    AgentNotFound,
    BackendError,
    FileMissing,
    InvalidSignature,
    NameInUse,
    NotFound,
    SessionNotFound,
)

ENDPOINT = "http://fake.test:8090"
ACCESS_KEY = "AKIAFAKE"
SECRET_KEY = "fake-secret"
ENVIRON = {"BACKEND_ENDPOINT": ENDPOINT, "BACKEND_ACCESS_KEY": ACCESS_KEY, "BACKEND_SECRET_KEY": SECRET_KEY}

Console = list[list[Any]]


@dataclass
class Step:
    """What a run answers at once: records, then a status."""

    console: Console = field(default_factory=list)
    status: str = "finished"
    exit_code: int | None = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class FakeRun:
    """A run and how far it is."""

    steps: deque[Step]
    records: Console = field(default_factory=list)
    present: Step = field(default_factory=Step)
    inputs: list[str] = field(default_factory=list)
    interrupted: bool = False


@dataclass
class FakeSession:
    """A session as the fake keeps it."""

    id: str
    name: str
    body: dict[str, Any]
    status: str = "PENDING"
    reason: str = "submitted"
    message: str = "waits for its turn"
    path: deque[tuple[str, str, str]] = field(default_factory=deque)
    """Statuses to come, one for each look at it."""
    exit_code: int | None = None
    result: str = "undefined"
    started: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    runs: dict[str, FakeRun] = field(default_factory=dict)
    logs: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    interrupts: int = 0

    def move(self, status: str, reason: str, message: str) -> None:
        """Enter a status."""
        self.history.append(
            {
                "kernelId": None,
                "before": self.status,
                "after": status,
                "reason": reason,
                "message": message,
                "at": _now(),
            }
        )
        self.status, self.reason, self.message = status, reason, message
        self.started = self.started or status == "RUNNING"

    def view(self) -> dict[str, Any]:
        """Show it as the API does."""
        config = self.body.get("config", {})
        return {
            "sessionId": self.id,
            "sessionName": self.name,
            "type": self.body.get("type"),
            "image": self.body["image"],
            "status": self.status,
            "statusInfo": self.reason,
            "message": self.message,
            "result": self.result,
            "exitCode": self.exit_code,
            "clusterSize": self.body.get("clusterSize", 1),
            "clusterMode": self.body.get("clusterMode"),
            "requestedSlots": {"cpu": config.get("resources", {}).get("cpu"), "mem": str(512 * 2**20)},
            "creationTime": _now(),
            "startedAt": _now() if self.started else None,
            "terminationTime": None,
            "kernels": [
                {"kernelId": "k1", "role": "main", "index": 1, "hostname": "main1", "status": self.status,
                 "statusInfo": self.reason, "message": "", "agentId": "node-1", "containerId": "c1", "exitCode": None}
            ],
        }  # fmt: skip


Program = Callable[[str, dict[str, Any]], Iterable[Step]]


def echo_program(code: str, options: dict[str, Any]) -> Iterable[Step]:
    """The default program: prints what it was given."""
    return [Step([["stdout", f"ran {code or options.get('exec')}\n"]])]


def dependency_graph(session: FakeSession) -> dict[str, Any]:
    """Show a session that depends on one other."""
    status = f"KernelStatus.{session.status}"
    below = {"session_id": "b" * 36, "session_name": "before", "status": "KernelStatus.TERMINATED", "depends_on": []}
    return {"session_id": session.id, "session_name": session.name, "status": status, "depends_on": [below]}


class FakeServer:
    """The server; hand its :attr:`wire` to a client."""

    def __init__(self) -> None:
        self.sessions: dict[str, FakeSession] = {}
        self.requests: list[httpx.Request] = []
        self.rehearsed: list[dict[str, Any]] = []
        self.rehearsal: dict[str, Any] = {**EXPLANATION, "sessionName": "rehearsed", "status": "PENDING"}
        self.start_path: list[tuple[str, str, str]] = [("RUNNING", "started", "")]
        self.program: Program = echo_program
        self.events: list[list[bytes]] = []
        """Bodies of the next event streams, in pieces; after one of them the connection breaks."""
        self.started_runs = 0
        self.quotas: dict[tuple[str, str], dict[str, Any]] = {}
        self._answers: dict[str, httpx.Response] = {}
        self._failures: deque[httpx.Response | Exception] = deque()
        self._lost: deque[Exception] = deque()

    @property
    def wire(self) -> httpx.MockTransport:
        """What a client sends its requests through."""
        return httpx.MockTransport(self._handle)

    def fail_next(self, *failures: httpx.Response | Exception) -> None:
        """Answer the next requests so, without doing anything."""
        self._failures.extend(failures)

    def lose_next_answer(self, error: Exception | None = None) -> None:
        """Do what the next request asks for, and break the connection instead of answering."""
        self._lost.append(error or httpx.ReadError("connection reset"))

    def asked(self, method: str, pattern: str) -> list[httpx.Request]:
        """Return the requests so far that match."""
        return [r for r in self.requests if r.method == method and re.fullmatch(pattern, r.url.path)]

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        await asyncio.sleep(0)  # as a network does
        if self._failures:
            failure = self._failures.popleft()
            if isinstance(failure, Exception):
                raise failure
            return failure
        try:
            self._check_signature(request)
            response = self._answer_once(request)
        except BackendError as exc:
            response = problem(exc)
        if self._lost:
            raise self._lost.popleft()
        return response

    def _check_signature(self, request: httpx.Request) -> None:
        expected = sign_request(
            method=request.method,
            target=request.url.raw_path.decode(),
            host=request.headers["host"],
            content_type=request.headers["content-type"].split(";")[0],
            date=datetime.fromisoformat(request.headers["date"]),
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
        )
        if request.headers["authorization"] != expected["Authorization"]:
            raise InvalidSignature()

    def _answer_once(self, request: httpx.Request) -> httpx.Response:
        key = request.headers.get("idempotency-key")
        if key is None:
            return self._answer(request)
        if key not in self._answers:
            self._answers[key] = self._answer(request)
        kept = self._answers[key]
        return httpx.Response(kept.status_code, content=kept.content, headers=kept.headers)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        parts = [unquote(part) for part in request.url.path.strip("/").split("/") if part]
        match (request.method, *parts):
            case ("GET",):
                return httpx.Response(200, json={"version": "v7.20230615", "manager": "fake"})
            case ("GET", "agents"):
                return httpx.Response(200, json={"items": [NODE], "total": 1})
            case ("GET", "runtimes"):
                named = {"name": "ir", "language": "R", "title": "R 4", "isDefault": True}
                return httpx.Response(200, json={"image": request.url.params["image"], "items": [named]})
            case ("GET", "scaling-groups"):
                group = {"name": "default", "policy": "drf", "selection": "dispersed", "waiting": 2, "warning": "oh"}
                return httpx.Response(200, json={"scaling_groups": [group]})
            case ("GET", "quotas"):
                return httpx.Response(200, json={"items": list(self.quotas.values())})
            case ("PUT", "quotas", kind, *name):
                used = {"used_slots": {"cpu": "3"}, "used_sessions": 1, "used_pending": 0}
                quota = {"scope": kind, "name": "/".join(name), **json.loads(request.content), **used}
                self.quotas[kind, "/".join(name)] = quota
                return httpx.Response(200, json=quota)
            case ("DELETE", "quotas", kind, *name):
                self.quotas.pop((kind, "/".join(name)), None)
                return httpx.Response(204)
            case ("GET", "events", "session"):
                return self._event_stream()
            case ("GET", "agents", "node-1"):
                return httpx.Response(200, json={**NODE, **NODE_DETAIL})
            case ("GET", "agents", node):
                raise AgentNotFound(f"there is no node {node!r}")
            case ("GET", "session"):
                return self._list(request)
            case ("POST", "session"):
                return self._create(json.loads(request.content))
            case ("POST", "session", "_", "dry-run"):
                self.rehearsed.append(json.loads(request.content))
                return httpx.Response(200, json=self.rehearsal)
            case (method, "session", name, *rest):
                return self._session_call(request, method, self._find(name), "/".join(rest))
        raise NotFound(f"no route {request.method} {request.url.path}")

    def _session_call(self, request: httpx.Request, method: str, session: FakeSession, what: str) -> httpx.Response:
        match (method, what):
            case ("GET", "stats"):
                return httpx.Response(200, json={"kernels": [{**KERNEL_USAGE, "kernelId": session.id}]})
            case ("GET", ""):
                if session.path and session.status not in ("TERMINATED", "CANCELLED", "ERROR"):
                    session.move(*session.path.popleft())
                return httpx.Response(200, json=session.view())
            case ("DELETE", ""):
                session.path.clear()
                session.move("TERMINATED", "user-requested", "ended by its owner")
                return httpx.Response(200, json={"sessionId": session.id, "status": session.status, "stats": {}})
            case ("PATCH", ""):
                session.path.extend([("RESTARTING", "restart", ""), ("RUNNING", "started", "")])
                return httpx.Response(204)
            case ("POST", ""):
                return httpx.Response(200, json={"result": self._execute(session, json.loads(request.content))})
            case ("POST", "interrupt"):
                session.interrupts += 1
                for run in session.runs.values():
                    run.interrupted = True
                return httpx.Response(204)
            case ("POST", "rename"):
                session.name = request.url.params["name"]
                return httpx.Response(204)
            case ("POST", "complete"):
                options = json.loads(request.content)["options"]
                return httpx.Response(200, json={"result": {"completions": [f"{options['line']}!", str(options)]}})
            case ("POST", "upload"):
                session.files.update(_parts(request))
                return httpx.Response(204)
            case ("GET", "download"):
                return _tar(session, json.loads(request.content)["files"], request.headers["accept"])
            case ("GET", "files"):
                return httpx.Response(200, json={"files": "[]", "entries": _entries(session)})
            case ("GET", "logs"):
                return httpx.Response(200, json={"result": {"logs": session.logs}})
            case ("GET", "status-history"):
                return httpx.Response(200, json={"result": {}, "changes": session.history})
            case ("GET", "explain"):
                return httpx.Response(200, json={**EXPLANATION, "sessionId": session.id, "status": session.status})
            case ("POST", "consolidate"):
                asked = json.loads(request.content)
                move = {"sessionId": "s-9", "fromAgents": ["a"], "toAgents": ["b"], "ranS": 90.0}
                moves = [move] if asked["max_moves"] > 1 else []
                answer = {"sessionId": session.id, "sessionName": session.name, "message": "it can start"}
                return httpx.Response(200, json={**answer, "moves": moves, "applied": asked["apply"]})
            case ("GET", "scheduling-history"):
                return httpx.Response(200, json={"items": [WAITED]})
            case ("GET", "dependency-graph"):
                return httpx.Response(200, json=dependency_graph(session))
        raise NotFound(f"no route {method} {what}")

    def _find(self, name: str) -> FakeSession:
        for session in self.sessions.values():
            if name in (session.id, session.name):
                return session
        raise SessionNotFound(f"there is no session {name!r}")

    def _create(self, body: dict[str, Any]) -> httpx.Response:
        for session in self.sessions.values():
            if session.name == body["name"] and session.status not in ("TERMINATED", "CANCELLED", "ERROR"):
                if body.get("reuseIfExists"):
                    return httpx.Response(200, json=_created(session, created=False))
                raise NameInUse(f"the name {body['name']!r} is in use", session_id=session.id)
        session = FakeSession(str(uuid4()), body["name"], body, path=deque(self.start_path))
        self.sessions[session.id] = session
        return httpx.Response(201, json=_created(session, created=True))

    def _list(self, request: httpx.Request) -> httpx.Response:
        statuses = request.url.params["status"].split(",")
        limit, offset = int(request.url.params["limit"]), int(request.url.params["offset"])
        found = [s.view() for s in reversed(self.sessions.values()) if s.status in statuses]
        return httpx.Response(200, json={"items": found[offset : offset + limit], "total": len(found)})

    def _execute(self, session: FakeSession, body: dict[str, Any]) -> dict[str, Any]:
        run_id, options = body["runId"], body["options"]
        run = session.runs.get(run_id)
        if run is None:
            self.started_runs += 1
            run = session.runs[run_id] = FakeRun(deque(self.program(body["code"], options)))
            self._advance(run)
        elif body["mode"] == "input":
            run.inputs.append(body["code"])
            self._advance(run)
        elif options["after_seq"] == len(run.records) and run.present.status not in ("finished", "waiting-input"):
            self._advance(run)
        after = options["after_seq"]
        return {
            "runId": run_id,
            "status": run.present.status,
            "exitCode": run.present.exit_code,
            "options": run.present.options,
            "console": run.records[after:],
            "files": [],
            "seq": len(run.records),
        }

    def _advance(self, run: FakeRun) -> None:
        run.present = run.steps.popleft() if run.steps else Step()
        run.records.extend(run.present.console)

    def _event_stream(self) -> httpx.Response:
        pieces = self.events.pop(0)

        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece
            raise httpx.ReadError("connection reset")

        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body())


NODE = {
    "id": "node-1",
    "status": "ALIVE",
    "scalingGroup": "default",
    "architecture": "x86_64",
    "backend": "process",
    "availableSlots": {"cpu": "2", "mem": str(4 * 2**30)},
    "occupiedSlots": {"cpu": "0.5"},
    "schedulable": True,
    "message": "",
}
NODE_DETAIL = {
    "labels": {"isolation": "full"},
    "notes": ["the NVIDIA driver does not work: it is confused"],
    "numaNodes": [{"id": 0, "socket": "0", "cpus": [0, 1], "memoryBytes": 4 * 2**30, "distances": [10]}],
    "nics": [{"name": "eth0", "kind": "ethernet", "numaNode": 0, "speedMbps": 10000}],
    "devices": [
        {"slot": "cpu", "id": "0", "capacity": 1000, "numaNode": 0},
        {"slot": "cpu", "id": "1", "capacity": 1000, "numaNode": 0},
    ],
    "links": {"names": [], "rows": []},
    "holdings": [
        {"kernelId": "k", "sessionId": "s", "sessionName": "mine", "devices": {"cpu": {"1": 500}}, "status": "RUNNING"}
    ],
}
KERNEL_USAGE = {
    "hostname": "main1",
    "measuredAt": "2026-01-01T00:00:00+00:00",
    "cpuUsed": 0.5,
    "cpuLimit": 1,
    "memoryBytes": 2**20,
    "memoryLimit": 2**29,
    "devices": [{"slot": "x.shares", "id": "x0", "units": 250, "utilization": 0.25}],
    "advisory": ["x.shares"],
}
WAITED = {
    "number": 1,
    "verdict": "refused",
    "code": "not-enough",
    "message": "no node has room",
    "at": "2026-01-02T03:04:05.678+00:00",
    "cause": "p1",
}
EXPLANATION = {
    "reason": "not-enough",
    "message": "no node has room",
    "position": 2,
    "waiting": 3,
    "behind": "first",
    "closest": {"agentId": "node-1", "code": "not-enough", "message": "1 core short", "shortfall": {"cpu": "1"}},
    "fragmentation": "none",
    "estimate": {"at": "2026-01-02T03:04:05+00:00", "notBefore": None, "basis": "time-limits", "message": "at 03:04"},
    "policy": "fifo",
    "nodes": [{"agentId": "node-1", "code": "not-enough", "message": "1 core short", "shortfall": {"cpu": "1"}}],
}


def problem(error: BackendError, *, retry_after: str | None = None) -> httpx.Response:
    """Return an error as the front door renders it."""
    headers = {"retry-after": retry_after} if retry_after else {}
    body = {
        "type": f"https://example.test/{error.code}",
        "title": error.title,
        "msg": error.message,
        "code": error.code,
        "details": error.details,
        "request_id": "req-1",
    }
    return httpx.Response(error.http_status, json=body, headers=headers)


def _now() -> str:
    return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).isoformat()


def _created(session: FakeSession, *, created: bool) -> dict[str, Any]:
    return {"sessionId": session.id, "sessionName": session.name, "status": session.status, "created": created}


def _parts(request: httpx.Request) -> dict[str, bytes]:
    head = b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
    message = BytesParser().parsebytes(head + request.content)
    parts = message.get_payload()
    assert isinstance(parts, list)
    found = {}
    for part in parts:
        content = part.get_payload(decode=True)
        name = part.get_filename()
        assert isinstance(content, bytes)
        assert name is not None
        found[unquote(name)] = content
    return found


def _tar(session: FakeSession, wanted: list[str], accept: str) -> httpx.Response:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in sorted(session.files.items()):
            if any(name == one or name.startswith(f"{one}/") for one in wanted):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        if not tar.getmembers():
            raise FileMissing(f"{wanted[0]}: there is no such file in the session")
    boundary = "0123456789abcdef"
    head = f"--{boundary}\r\nContent-Type: application/x-tar\r\n\r\n".encode()
    body = head + buffer.getvalue() + f"\r\n--{boundary}--\r\n".encode()
    return httpx.Response(200, content=body, headers={"content-type": f"multipart/mixed; boundary={boundary}"})


def _entries(session: FakeSession) -> list[dict[str, Any]]:
    return [
        {"filename": name, "kind": "file", "size": len(content), "mode": "-rw-r--r--", "mtime": 1767323045.5}
        for name, content in sorted(session.files.items())
    ]
