"""Kernels as containers of a Docker engine."""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import structlog
from docker.errors import APIError, DockerException, NotFound
from requests.exceptions import RequestException

from actors.agent.backends.base import (
    BackendInfo,
    ComputeBackend,
    Ending,
    ExecProcess,
    Found,
    Launch,
    Life,
    PreparedImage,
    Spare,
    Tell,
    nobody,
)
from actors.agent.backends.docker import spares
from actors.agent.backends.docker.containers import (
    SPARE_LABEL,
    container_name,
    create_arguments,
    found_from,
    named_life,
    own_labels,
)
from actors.agent.backends.docker.events import EventWatcher
from actors.agent.backends.docker.exec_process import DockerExec
from actors.agent.backends.docker.images import ImageStore
from actors.agent.backends.docker.networks import ensure_network, remove_network
from backendai_ray.config import Settings
from backendai_ray.core.errors import BackendError, EngineUnavailable, KernelNotFound, KernelStartFailed
from backendai_ray.core.ids import AgentId, SessionId
from backendai_ray.kernel.bundle import runner_bundle

log = structlog.get_logger()

API_TIMEOUT_S = 60
QUIET_S = 3600
"""An event stream that was silent for as long is opened anew, should the engine have forgotten it."""
CONNECTIONS = 24
_CGROUP_FILES = (
    "/sys/fs/cgroup/system.slice/docker-{id}.scope/memory.events",
    "/sys/fs/cgroup/docker/{id}/memory.events",
    "/sys/fs/cgroup/memory/docker/{id}/memory.oom_control",
    "/sys/fs/cgroup/memory/system.slice/docker-{id}.scope/memory.oom_control",
)


class DockerBackend(ComputeBackend):
    """One client and one event stream per agent; containers are known by name and by labels."""

    name = "docker"

    def __init__(self, settings: Settings, agent_id: AgentId) -> None:
        super().__init__(settings, agent_id)
        self._own = own_labels(agent_id, settings.sessions_dir)
        self._client: docker.DockerClient | None = None
        self._images: ImageStore | None = None
        self._events: EventWatcher | None = None
        self._runner_dir: Path | None = None
        self._info: BackendInfo | None = None
        self._on_end: Callable[[Life], None] | None = None
        self._lock = threading.Lock()
        self._ids: dict[Life, str] = {}
        self._oom_events: Counter[str] = Counter()

    # ── the engine ─────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        with _engine("the Docker engine does not answer"):
            self._client = docker.from_env(version="auto", timeout=API_TIMEOUT_S, max_pool_size=CONNECTIONS)
            self._client.ping()
        self._images = ImageStore(self._client, self.settings)
        self._runner_dir = runner_bundle(self.settings.cache_dir)

    def close(self) -> None:
        if self._events is not None:
            self._events.stop()
        if self._client is not None:
            self._client.close()

    def probe(self) -> BackendInfo:
        if self._info is None:
            with _engine("the Docker engine does not say what it is"):
                version = self._api.version()
            components = {c["Name"]: c["Version"] for c in version.get("Components") or ()}
            self._info = BackendInfo(
                architecture=platform.machine(),
                labels={
                    "isolation": "full",
                    "engine": "podman" if "Podman Engine" in components else "docker",
                    "engine-version": str(version.get("Version", "")),
                    "kernel-version": platform.release(),
                },
            )
        return self._info

    def health(self) -> str:
        try:
            self._api.ping()
        except (DockerException, RequestException) as error:
            return f"the Docker engine does not answer: {str(error)[:200]}"
        return ""

    @property
    def _api(self) -> docker.APIClient:
        if self._client is None:
            raise EngineUnavailable("the Docker backend has not been opened")
        return self._client.api

    # ── images ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def images(self) -> Sequence[str]:
        with _engine("the images cannot be listed"):
            return self._image_store.names()

    def is_prepared(self, reference: str) -> bool:
        return self._image_store.is_ready(reference)

    def prepare_image(self, reference: str, architecture: str, tell: Tell = nobody) -> PreparedImage:
        return self._image_store.prepare(reference, architecture, tell)

    def tidy(self) -> None:
        with _engine("images that nobody uses cannot be removed"):
            self._image_store.clean()

    @property
    def _image_store(self) -> ImageStore:
        if self._images is None:
            raise EngineUnavailable("the Docker backend has not been opened")
        return self._images

    # ── starting ───────────────────────────────────────────────────────────────────────────────────────────────────

    def launch(self, launch: Launch) -> str:
        with _engine(f"kernel {launch.life.kernel_id} could not be started"):
            container_id, is_started = self._create(launch)
            self._remember(launch.life, container_id)
            try:
                if not is_started:
                    self._api.start(container_id)
            except APIError as error:
                raise _start_failed(launch, error) from error
        return container_id

    def _create(self, launch: Launch) -> tuple[str, bool]:
        """Returns the container's id and whether it was started already (by an earlier call)."""
        is_gang = len(launch.spec.cluster_hosts) > 1
        network = ensure_network(self._api, launch.spec.session_id) if is_gang else ""
        runner_dir = self._runner_dir if launch.image.python else None
        arguments = create_arguments(self._api, launch, own=self._own, runner_dir=runner_dir, network=network)
        try:
            return str(self._api.create_container(**arguments)["Id"]), False
        except APIError as error:
            if error.status_code == 409:  # the name is taken: an earlier call made it and was not heard of
                facts = self._api.inspect_container(container_name(launch.life))
                if SPARE_LABEL in (facts["Config"].get("Labels") or {}) and (root := spares.root_of(facts)):
                    spares.complete(self._api, facts["Id"], root, launch)
                return str(facts["Id"]), facts["State"]["Status"] != "created"
            if error.status_code == 404:  # the image went away after we had looked at it
                self._image_store.forget()
            raise _start_failed(launch, error) from error

    # ── spares ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def fits_spare(self, launch: Launch) -> bool:
        """See :class:`actors.agent.backends.base.SupportsSpares`, also for the methods that follow."""
        return spares.fits(launch)

    def make_spare(self, image: PreparedImage, uid: int) -> Spare:
        if self._runner_dir is None:
            raise EngineUnavailable("the Docker backend has not been opened")
        name = spares.new_name(self.agent_id)
        spare = Spare(name=name, container_id="", image_id=image.id, reference=image.reference)
        try:
            with _engine("a spare could not be started"):
                return spares.make(
                    self._api, self.settings, spare, image, own=self._own, runner_dir=self._runner_dir, uid=uid
                )
        except OSError as error:
            self.remove_spare(spare)
            raise KernelStartFailed(f"the folders of a spare cannot be made: {error}", retryable=True) from error
        except BaseException:
            self.remove_spare(spare)
            raise

    def hand_over(self, spare: Spare, launch: Launch) -> str | None:
        with _engine(f"a spare could not become kernel {launch.life.kernel_id}"):
            container_id = spares.hand_over(self._api, self.settings, spare, launch)
        if container_id is not None:
            self._remember(launch.life, container_id)
        return container_id

    def list_spares(self) -> Sequence[Spare]:
        with _engine("the spares cannot be listed"):
            rows = self._own_containers()
        spares.clear_folders(self.settings, self.agent_id, rows)
        return [spare for spare in map(spares.read, rows) if spare is not None]

    def remove_spare(self, spare: Spare) -> None:
        with _engine("a spare could not be removed"):
            spares.remove(self._api, self.settings, spare)

    # ── watching ───────────────────────────────────────────────────────────────────────────────────────────────────

    def list_own(self) -> Sequence[Found]:
        with _engine("the containers cannot be listed"):
            rows = self._own_containers()
        # A label may lie, or the container may have been renamed: whoever has the life's name comes first.
        rows.sort(key=lambda row: named_life(row) is not None)
        found = list({one.life: one for one in map(found_from, rows) if one is not None}.values())
        for one in found:
            self._remember(one.life, one.container_id)
        return found

    def _own_containers(self) -> list[dict[str, Any]]:
        filters = {"label": [f"{name}={value}" for name, value in self._own.items()]}
        return list(self._api.containers(all=True, filters=filters))

    def watch(self, on_end: Callable[[Life], None]) -> None:
        self._on_end = on_end
        self._events = EventWatcher(self._connect_for_events, self._on_event)
        self._events.start()

    def _connect_for_events(self) -> docker.APIClient:
        client: docker.APIClient = docker.from_env(version=self._api.api_version, timeout=QUIET_S).api
        return client

    def _on_event(self, event: Mapping[str, Any]) -> None:
        if not event or event.get("Type") == "image":
            self._image_store.forget()
            if not event:
                self._tell_missed_ends()
            return
        actor = event.get("Actor") or {}
        attributes = actor.get("Attributes") or {}
        if self._on_end is None or any(attributes.get(name) != value for name, value in self._own.items()):
            return
        row = {
            "Labels": attributes,
            "Id": actor.get("ID", ""),
            "State": "exited",
            "Names": [attributes.get("name", "")],
        }
        found = found_from(row)
        if found is None:
            return
        if event.get("Action") == "oom":
            with self._lock:
                self._oom_events[found.container_id] += 1
        else:
            self._on_end(found.life)

    def _tell_missed_ends(self) -> None:
        """The engine was away, maybe with what ran in it: whatever does not run any more has ended meanwhile."""
        known = list(self._ids)  # before the list, so that what is made meanwhile is not missed in it
        # One that is only created is on its way.
        there = {one.life for row in self._own_containers() if row.get("State") not in ("exited", "dead")
                 and (one := found_from(row)) is not None}  # fmt: skip
        for life in known:
            if self._on_end is not None and life not in there:
                self._on_end(life)

    def is_running(self, life: Life) -> bool:
        with _engine(f"kernel {life.kernel_id} cannot be looked at"):
            try:
                return bool(self._api.inspect_container(self._handle(life))["State"]["Running"])
            except NotFound:
                return False

    def oom_kills(self, life: Life) -> int:
        container_id = self._ids.get(life, "")
        for pattern in _CGROUP_FILES if container_id else ():
            try:
                words = Path(pattern.format(id=container_id)).read_text().split()
                return int(words[words.index("oom_kill") + 1])
            except (OSError, ValueError, IndexError):
                continue
        with self._lock:
            return self._oom_events[container_id]

    def log(self, life: Life, max_bytes: int) -> bytes:
        with _engine(f"the log of kernel {life.kernel_id} cannot be read"):
            try:
                # A line has some 80 bytes; asking for lines keeps the engine from sending all there is.
                text = self._api.logs(self._handle(life), tail=max(1, max_bytes // 16))
            except NotFound:
                return b""
        return bytes(text)[-max_bytes:]

    def stats(self, life: Life) -> Mapping[str, int]:
        with _engine(f"kernel {life.kernel_id} cannot be measured"):
            try:
                said = self._api.stats(self._handle(life), stream=False, one_shot=True)
            except NotFound:
                return {}
        if not said.get("memory_stats", {}).get("usage"):
            return {}
        return {
            "cpu_ns": int(said["cpu_stats"]["cpu_usage"]["total_usage"]),
            "memory_bytes": int(said["memory_stats"]["usage"]),
        }

    # ── ending ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, life: Life, grace_s: float) -> Ending:
        handle = self._handle(life)
        with _engine(f"kernel {life.kernel_id} could not be stopped"):
            try:
                state = self._api.inspect_container(handle)["State"]
                if state["Running"] or state.get("Paused"):
                    self._end(handle, grace_s)
                    state = self._api.inspect_container(handle)["State"]
            except NotFound:
                return Ending(message="its container is gone")
            return self._ending(life, state)

    def _end(self, handle: str, grace_s: float) -> None:
        try:
            if grace_s > 0:
                self._api.stop(handle, timeout=max(1, round(grace_s)))
            else:
                self._api.kill(handle)
            self._api.wait(handle, timeout=API_TIMEOUT_S)
        except APIError as error:
            if error.status_code not in (304, 409):  # it ended meanwhile
                raise

    def _ending(self, life: Life, state: Mapping[str, Any]) -> Ending:
        exit_code = state.get("ExitCode")
        return Ending(
            exit_code=exit_code,
            # An OOM kill of a child leaves the flag set as well, so the exit must fit too.
            oom_killed=bool(state.get("OOMKilled")) and exit_code == 137,
            message=str(state.get("Error") or ""),
            log=self.log(life, self.settings.agent.log_bytes),
        )

    def remove(self, life: Life, gang: SessionId | None = None) -> None:
        with _engine(f"kernel {life.kernel_id} could not be removed"):
            self._remove_container(self._handle(life))
            if gang is not None:
                remove_network(self._api, gang)
        with self._lock:
            self._oom_events.pop(self._ids.pop(life, ""), None)

    def _remove_container(self, handle: str) -> None:
        try:
            self._api.remove_container(handle, force=True, v=True)
        except NotFound:
            pass  # it was removed already
        except APIError as error:
            if error.status_code != 409:
                raise
            _wait_until_gone(self._api, handle)  # a removal is in progress

    # ── exec ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def exec(
        self, life: Life, argv: Sequence[str], *, tty: bool = False, rows: int = 24, cols: int = 80
    ) -> ExecProcess:
        """See :class:`actors.agent.backends.base.SupportsExec`."""
        with _engine(f"kernel {life.kernel_id} cannot run a command"):
            try:
                exec_id = self._api.exec_create(self._handle(life), list(argv), stdin=True, tty=tty)["Id"]
                response = self._api.exec_start(exec_id, tty=tty, socket=True)
                process = DockerExec(self._api, exec_id, response, tty=tty)
                if tty:
                    process.resize(rows, cols)
                return process
            except NotFound:
                raise KernelNotFound(f"kernel {life.kernel_id} has no container") from None

    # ── handles ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _remember(self, life: Life, container_id: str) -> None:
        with self._lock:
            self._ids[life] = container_id

    def _handle(self, life: Life) -> str:
        return self._ids.get(life) or container_name(life)


@contextmanager
def _engine(what: str) -> Iterator[None]:
    """Turn the SDK's errors into ours."""
    try:
        yield
    except BackendError:
        raise
    except (DockerException, RequestException) as error:
        raise EngineUnavailable(f"{what}: {str(error)[:300]}") from error


def _start_failed(launch: Launch, error: APIError) -> BackendError:
    said = str(error.explanation or error).strip()[:300]
    if "executable file not found" in said or ("no such file or directory" in said and not launch.image.shell):
        return KernelStartFailed(
            f"the image {launch.spec.image!r} has neither a usable Python 3 nor a shell: {said}", retryable=False
        )
    if error.status_code == 400:
        return KernelStartFailed(f"the engine refuses this container: {said}", retryable=False)
    return KernelStartFailed(f"the engine could not start the container: {said}", retryable=True)


def _wait_until_gone(api: docker.APIClient, handle: str) -> None:
    for _ in range(100):
        try:
            api.inspect_container(handle)
        except NotFound:
            return
        time.sleep(0.05)
    raise EngineUnavailable(f"the engine does not finish removing {handle}")
