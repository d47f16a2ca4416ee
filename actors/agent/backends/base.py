"""What a compute backend is: the thing that kernels run in.

Backends are found by the entry point group ``backendai_ray.compute_backends``; the built-in ones are registered
there like any other. ``actors.agent.testing.backend_conformance`` is the suite that a backend's tests inherit.

A *life* is one container of a kernel: a kernel has one per attempt, and one more each time it is restarted.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from actors.agent.devices.base import Grant
from backendai_ray.config import Settings
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import AgentId, KernelId, SessionId
from backendai_ray.core.runtimes import PYTHON, Runtime, choose_runtime, offered_runtimes
from backendai_ray.core.sessions import KernelSpec
from backendai_ray.core.slots import ResourceSlots


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Names one container of one kernel; the same life is never made twice."""

    kernel_id: KernelId
    attempt: int
    epoch: int

    @property
    def tag(self) -> str:
        """Short and fit for file names."""
        return f"{self.attempt}.{self.epoch}"

    def __str__(self) -> str:
        return f"{self.kernel_id}-{self.tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What a backend says of itself and of the node."""

    architecture: str
    """As ``uname -m`` says it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """For the node report; ``isolation`` is ``full``, or ``limits-only`` with an ``isolation-note``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """An image that is there and has been looked at."""

    reference: str
    """As the user named it."""
    id: str
    python: str = ""
    """Path of its Python 3; empty where it has none (or no runner fits it)."""
    pyzmq_dir: Path | None = None
    """On the host: where pyzmq for that Python is; ``None`` where the image brings its own."""
    shell: str = ""
    """Path of its shell; empty where it has none."""
    jupyter_kernels: tuple[Runtime, ...] = ()
    """Its kernelspecs."""
    runtime_label: str = ""
    """Its label ``ai.backend.runtime-type``."""
    minimum: ResourceSlots = field(default_factory=ResourceSlots)
    """What a kernel of it needs at least, as its maker says; empty where he does not."""

    def runtimes(self) -> tuple[Runtime, ...]:
        """Return what can run cells in it."""
        return offered_runtimes(has_python=bool(self.python), has_shell=bool(self.shell), kernels=self.jupyter_kernels)

    def runtime_for(self, asked: str) -> str:
        """Return the runtime of a session that asks for one, or (with an empty text) for the default.

        Raises:
            UnsupportedByImage: it has no such runtime.
        """
        return choose_runtime(asked, self.runtime_label, self.runtimes(), image=self.reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFolders:
    """Where one kernel keeps its things on the host."""

    root: Path
    work: Path
    """The session's folder: ``/home/work`` in the kernel."""
    run: Path
    """This life's socket, token and results: ``/run/backendai`` in the kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All that is needed to start one life."""

    life: Life
    spec: KernelSpec
    image: PreparedImage
    folders: KernelFolders
    grant: Grant
    environ: Mapping[str, str]
    pids_limit: int
    uid: int
    """The user (and group) that the kernel runs as."""
    output_buffer_bytes: int
    runtime: str = PYTHON


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One life that the backend knows of."""

    life: Life
    container_id: str
    is_running: bool
    session_id: str = ""
    was_spare: bool = False
    """It was started ahead and handed over (see :class:`SupportsSpares`), maybe not wholly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a life ended, as far as the backend knows."""

    exit_code: int | None = None
    oom_killed: bool = False
    message: str = ""
    log: bytes = b""
    """The end of what it printed."""


class ExecProcess(Protocol):
    """A command that runs in a kernel by :class:`SupportsExec`."""

    def read(self) -> tuple[str, bytes] | None:
        """Return the next ``("stdout" | "stderr", data)``; ``None`` at the end. Blocks."""
        ...

    def exit_code(self) -> int:
        """Return the exit code after the end; 255 when it cannot be found out."""
        ...

    def write(self, data: bytes) -> None:
        """Write to its standard input."""
        ...

    def resize(self, rows: int, cols: int) -> None:
        """Tell its terminal its size, if it has one."""
        ...

    def close(self) -> None:
        """Hang up; the command may go on."""
        ...


Tell = Callable[[str], None]
"""Takes a sentence, for people, about how far something is."""


def nobody(_sentence: str) -> None:
    """Nobody wants to know."""


class ComputeBackend(ABC):
    """Starts, watches and ends kernels.

    Construction: ``Backend(settings, agent_id)``, trivial; :meth:`open` does the work. All methods block and are
    called from worker threads, several at a time for different kernels and at most one at a time for one kernel.

    Must: find every life again after the agent was killed at any moment, by itself and without the agent's records
    (:meth:`list_own`); make the same life at most once; leave nothing behind after :meth:`remove`; keep kernels
    running while no agent is there.
    May: have :class:`SupportsExec` and :class:`SupportsSpares`.
    Errors: :class:`EngineUnavailable` for what may pass by itself (the agent repeats), :class:`KernelStartFailed`,
    :class:`ImageNotFound` and other errors of the tree for what does not.
    """

    name: str

    def __init__(self, settings: Settings, agent_id: AgentId) -> None:
        self.settings = settings
        self.agent_id = agent_id

    @abstractmethod
    def open(self) -> None:
        """Connect and find out what the node can do.

        Raises:
            EngineUnavailable: it cannot be used here, with the reason.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and threads; kernels go on."""

    @abstractmethod
    def probe(self) -> BackendInfo:
        """Return what the node is. Cheap after the first time."""

    @abstractmethod
    def health(self) -> str:
        """Return the sentence that says why nothing new can be started; empty when all is well. Asked every few s."""

    @abstractmethod
    def images(self) -> Sequence[str]:
        """Return the names of images that can be used without a pull, aliases included, sorted."""

    @abstractmethod
    def is_prepared(self, reference: str) -> bool:
        """Return whether :meth:`prepare_image` will answer without work. Never blocks."""

    @abstractmethod
    def prepare_image(self, reference: str, architecture: str, tell: Tell = nobody) -> PreparedImage:
        """Have an image ready: resolve aliases, pull or build what is missing, find out what it has.

        May take long; calls for the same image at the same time share the work. ``tell`` hears how far it is, about
        once a second and from any thread.

        Raises:
            ImageNotFound: there is none, or none for this architecture.
            EngineUnavailable: it could not be found out now.
        """

    def kernel_uid(self, kernel_id: KernelId) -> int:
        """Return the user that a kernel runs as; the same each time it is asked. Never root, if it can be helped."""
        return 1000 if os.geteuid() == 0 else os.geteuid()

    def tidy(self) -> None:  # noqa: B027 - most backends have nothing to do
        """Called every minute or so: make room where that is needed and harms nobody.

        Raises:
            EngineUnavailable: it did not work now.
        """

    @abstractmethod
    def launch(self, launch: Launch) -> str:
        """Start a life and return its container id. A life that is there already is not made again.

        The folders exist. Returns when the kernel's first process has been started; it does not wait for the runner.

        Raises:
            KernelStartFailed: it cannot be started; ``details["retryable"]`` says whether another try may do better.
        """

    @abstractmethod
    def list_own(self) -> Sequence[Found]:
        """Return every life of this agent that left anything behind, running or not."""

    @abstractmethod
    def watch(self, on_end: Callable[[Life], None]) -> None:
        """Call back, from any thread, soon after a life ended. May be lost or repeated; called once, after open."""

    @abstractmethod
    def is_running(self, life: Life) -> bool:
        """Return whether it runs; false when it is unknown."""

    @abstractmethod
    def oom_kills(self, life: Life) -> int:
        """Return how many of its processes were killed for memory so far; 0 where this cannot be found out.

        Asked after every run, from the event loop: read a counter, never ask an engine.
        """

    @abstractmethod
    def log(self, life: Life, max_bytes: int) -> bytes:
        """Return the end of what it printed; empty when it is unknown."""

    @abstractmethod
    def stats(self, life: Life) -> Mapping[str, int]:
        """Return ``cpu_ns`` and ``memory_bytes`` used, as far as known; empty when it does not run."""

    @abstractmethod
    def stop(self, life: Life, grace_s: float) -> Ending:
        """End it: ask politely, and after ``grace_s`` (at once when 0) kill everything in it.

        Returns when no process of it is left. A life that ended by itself, or is unknown, is not an error. May be
        called with a grace of 0 while an earlier, polite call still waits.
        """

    @abstractmethod
    def remove(self, life: Life, gang: SessionId | None = None) -> None:
        """Delete what is left of an ended life: container, mounts, network membership, limits. Idempotent.

        Args:
            life: Which; it has been stopped.
            gang: The session whose private network it was in; the last one to leave removes the network.

        Raises:
            EngineUnavailable: something is still there; the agent tries again.
        """


@runtime_checkable
class SupportsExec(Protocol):
    """The optional ability to run a command in a kernel beside what it runs."""

    def exec(
        self, life: Life, argv: Sequence[str], *, tty: bool = False, rows: int = 24, cols: int = 80
    ) -> ExecProcess:
        """Start a command in the kernel, as its user, in ``/home/work``, as the leader of its process group."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """A container started ahead, for whoever comes next."""

    name: str
    """Unique, also over restarts of the agent."""
    container_id: str
    image_id: str
    reference: str
    """What the image was asked for by."""


@runtime_checkable
class SupportsSpares(Protocol):
    """The optional ability to start containers ahead; see :mod:`actors.agent.spares`."""

    def fits_spare(self, launch: Launch) -> bool:
        """Return whether a spare can become this life: nothing is asked for that must be known from the beginning."""
        ...

    def make_spare(self, image: PreparedImage, uid: int) -> Spare:
        """Start a container whose runner waits for a session; returns when the runner listens.

        Raises:
            KernelStartFailed, EngineUnavailable: there is none, and nothing is left of it.
        """
        ...

    def hand_over(self, spare: Spare, launch: Launch) -> str | None:
        """Make a spare the container of a life, with the life's folders and limits; its environment comes later.

        Returns:
            The container's id; ``None`` when the spare is of no use (the caller removes it).
        """
        ...

    def list_spares(self) -> Sequence[Spare]:
        """Return this agent's spares, also those of its earlier incarnations; no life is among them."""
        ...

    def remove_spare(self, spare: Spare) -> None:
        """Delete what is left of a spare. Idempotent."""
        ...


BACKEND_GROUP = "backendai_ray.compute_backends"


def backend_class(name: str) -> type[ComputeBackend]:
    """Return the installed backend of that name.

    Raises:
        InvalidParameter: there is none; the message names those there are.
    """
    points = {point.name: point for point in entry_points(group=BACKEND_GROUP)}
    if name not in points:
        raise InvalidParameter(
            f"agent.backend: no compute backend {name!r} is installed; there are: {', '.join(sorted(points))}",
            field="agent.backend",
        )
    loaded: type[ComputeBackend] = points[name].load()
    return loaded
