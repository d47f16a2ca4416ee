"""Images of the engine: names, pulls, and what is known of each, kept warm so that a start asks the engine nothing."""

from __future__ import annotations

import platform
import shutil
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import docker
import structlog
from docker.errors import APIError, DockerException, NotFound
from docker.errors import ImageNotFound as NotInEngine

from actors.agent.backends.base import PreparedImage, Tell
from actors.agent.backends.docker.image_disk import PulledImages, removable
from actors.agent.backends.docker.image_labels import minimum_of
from actors.agent.backends.docker.probing import ContentsCache, ImageContents
from actors.agent.backends.docker.pulling import pull
from backendai_ray.config import Settings
from backendai_ray.core.errors import BackendError, EngineUnavailable, ImageNotFound
from backendai_ray.images import ensure_default_image
from backendai_ray.kernel.bundle import pyzmq_for

log = structlog.get_logger()

DEFAULT_ALIAS = "python"
JUST_USED_S = 600.0
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "386": "i686"}


class ImageStore:
    """Prepares images; each is worked on once at a time, and remembered until the engine tells of a change."""

    def __init__(self, client: docker.DockerClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._contents = ContentsCache(settings.cache_dir / "images")
        self._pulled = PulledImages(settings.cache_dir / "pulled-images.json")
        self._lock = threading.Lock()
        self._ready: dict[tuple[str, str], PreparedImage] = {}
        self._working: dict[tuple[str, str], Future[PreparedImage]] = {}
        self._root: Path | None = None

    def forget(self) -> None:
        """Something about images changed: look again at the next start."""
        with self._lock:
            self._ready.clear()

    def is_ready(self, reference: str) -> bool:
        return any(name == reference for name, _ in list(self._ready))

    def names(self) -> list[str]:
        """Return the names of what the engine has, and the aliases that stand for one of them."""
        names = {
            tag for row in self._client.api.images() for tag in row.get("RepoTags") or () if tag != "<none>:<none>"
        }
        aliases = {alias for alias, target in self._aliases().items() if target in names}
        return sorted(names | aliases | {DEFAULT_ALIAS})

    def prepare(self, reference: str, architecture: str, tell: Tell) -> PreparedImage:
        """See :meth:`actors.agent.backends.base.ComputeBackend.prepare_image`."""
        key = (reference, architecture)
        with self._lock:
            ready = self._ready.get(key)
            if ready is not None:
                self._pulled.used(ready.id, time.time())
                return ready
            working = self._working.get(key)
            mine = working is None
            if working is None:
                working = self._working[key] = Future()
        if mine:
            self._work(key, working, tell)
        return working.result()

    def _work(self, key: tuple[str, str], future: Future[PreparedImage], tell: Tell) -> None:
        try:
            image = self._look(*key, tell)
            with self._lock:
                self._ready[key] = image
            future.set_result(image)
        except BackendError as error:
            future.set_exception(error)
        except (DockerException, OSError) as error:
            future.set_exception(EngineUnavailable(f"the engine failed to prepare {key[0]}: {error}"))
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                self._working.pop(key, None)

    def _look(self, reference: str, architecture: str, tell: Tell) -> PreparedImage:
        machine = platform.machine()
        if architecture and _machine(architecture) != machine:
            raise ImageNotFound(
                f"{reference} is wanted for {architecture}, but this node is {machine}", image=reference
            )
        facts = self._inspect(self._resolve(reference, tell))
        of_image = _machine(facts.get("Architecture") or machine)
        if of_image != machine:
            raise ImageNotFound(f"{reference} is an image for {of_image}, but this node is {machine}", image=reference)
        self._pulled.used(facts["Id"], time.time())
        labels = (facts.get("Config") or {}).get("Labels") or {}
        contents = self._contents.of(self._client.api, facts["Id"], hint=labels.get("ai.backend.runtime-path", ""))
        pyzmq_dir = self._pyzmq(reference, contents)
        return PreparedImage(
            reference=reference,
            id=facts["Id"],
            python=contents.python if pyzmq_dir is not None else "",
            pyzmq_dir=pyzmq_dir,
            shell=contents.shell,
            jupyter_kernels=contents.jupyter_kernels,
            runtime_label=labels.get("ai.backend.runtime-type", ""),
            minimum=minimum_of(labels, reference),
        )

    def _pyzmq(self, reference: str, contents: ImageContents) -> Path | None:
        if not contents.python:
            return None
        try:
            return pyzmq_for(self._settings.cache_dir, contents.version, contents.libc, contents.machine)
        except BackendError as error:
            log.warning("image.no_runner_fits", image=reference, python=contents.version, error=error.message)
            return None

    # ── room on the disk ───────────────────────────────────────────────────────────────────────────────────────────

    def clean(self) -> None:
        """Remove images that nobody uses while the disk is fuller than it may be; see :mod:`.image_disk`.

        Raises:
            docker.errors.DockerException: the engine failed.
        """
        agent = self._settings.agent
        if agent.image_disk_high_percent >= 100 or self._disk_percent() < agent.image_disk_high_percent:
            return
        for image_id in removable(self._pulled.all(), in_use=self._in_use(), kept=self._aliases().values()):
            if self._disk_percent() <= agent.image_disk_low_percent:
                return
            self._remove(image_id)

    def _make_room(self) -> None:
        try:
            self.clean()
        except (DockerException, OSError) as error:  # the pull itself will say what is wrong
            log.warning("images.not_cleaned", error=str(error)[:200])

    def _disk_percent(self) -> float:
        if self._root is None:
            self._root = Path(self._client.info()["DockerRootDir"])
        if not self._root.exists():  # an engine on another machine: its disk is none of ours to judge
            return 0.0
        usage = shutil.disk_usage(self._root)
        return 100.0 * usage.used / max(1, usage.used + usage.free)

    def _in_use(self) -> set[str]:
        # A kernel that is being made of an image has no container yet; its image was looked at a moment ago.
        recent = {name for name, image in self._pulled.all().items() if time.time() - image.used_at < JUST_USED_S}
        return recent | {row["ImageID"] for row in self._client.api.containers(all=True)}

    def _remove(self, image_id: str) -> None:
        try:
            # Not forced: the engine itself refuses for an image that a container was made of meanwhile.
            for tag in self._client.images.get(image_id).attrs.get("RepoTags") or [image_id]:
                self._client.api.remove_image(tag)
            log.info("image.removed", image=image_id, why="the disk is nearly full")
        except (NotInEngine, NotFound):
            pass  # somebody was faster
        except APIError as error:
            log.info("image.stays", image=image_id, why=str(error.explanation or error)[:200])
            return
        self._pulled.forget(image_id)
        self.forget()

    # ── names ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _aliases(self) -> dict[str, str]:
        return {DEFAULT_ALIAS: self._settings.agent.default_image, **self._settings.agent.image_aliases}

    def _resolve(self, reference: str, tell: Tell) -> str:
        """Return what the engine calls the image, after having pulled or made it if need be."""
        target = self._aliases().get(reference, reference)
        if reference == DEFAULT_ALIAS and DEFAULT_ALIAS not in self._settings.agent.image_aliases:
            return ensure_default_image(self._client, reference=target, progress=_logged(tell))
        policy = self._settings.agent.pull_policy
        if policy == "never" or (policy == "missing" and self._has(target)):
            return target
        self._pull(target, tell)
        return target

    def _has(self, reference: str) -> bool:
        try:
            self._client.images.get(reference)
        except (NotInEngine, NotFound):
            return False
        except APIError as error:
            raise _not_found(reference, error) from error
        return True

    def _pull(self, reference: str, tell: Tell) -> None:
        log.info("image.pulling", image=reference)
        self._make_room()
        try:
            pull(self._client.api, reference, self._settings.agent.registries, tell)
        except BackendError as error:
            if not self._has(reference):
                raise
            # Pull policy "always" and no registry in reach: what is here will do.
            log.warning("image.not_pulled_again", image=reference, error=error.message)
            return
        self._pulled.pulled(str(self._inspect(reference)["Id"]), reference, time.time())

    def _inspect(self, reference: str) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = self._client.images.get(reference).attrs
        except (NotInEngine, NotFound):
            raise ImageNotFound(
                f"there is no image {reference!r} here, and this node does not pull (pull_policy)", image=reference
            ) from None
        except APIError as error:
            raise _not_found(reference, error) from error
        return facts


def _machine(architecture: str) -> str:
    return _MACHINES.get(architecture, architecture)


def _logged(tell: Tell) -> Tell:
    def told(line: str) -> None:
        log.info("image.default", step=line)
        tell(line)

    return told


def _not_found(reference: str, error: APIError) -> ImageNotFound:
    said = str(error.explanation or error).strip().splitlines()[0][:200]
    return ImageNotFound(f"there is no image {reference!r} here, and it cannot be pulled: {said}", image=reference)
