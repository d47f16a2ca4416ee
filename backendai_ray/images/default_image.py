"""The cluster's default Python image: the one configured if the engine has it, else one made from Debian packages.

With no registry in reach there is still a Debian mirror: the one this machine's apt is configured for. debootstrap
unpacks a minimal Debian with Python into a temporary folder, and the engine imports that folder as an image. The
image stays in the engine, so all of this happens once per machine.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from docker.errors import DockerException, ImageNotFound

from backendai_ray.core.errors import EngineUnavailable
from backendai_ray.images.debian import SUITE, build_rootfs, find_debootstrap
from backendai_ray.images.importing import import_rootfs

if TYPE_CHECKING:
    from docker import DockerClient

DEFAULT_REFERENCE = "backendai-ray/python:3.11-bookworm"
WORK_DIR = "/home/work"
WORK_UID = 1000

_TITLE, _RECIPE = "org.opencontainers.image.title", "org.opencontainers.image.revision"
_LATEST_RECIPE = "2"
"""Counts what we changed in the making; an image that an earlier one of us made is made anew."""

_PACKAGES = ("python3", "ca-certificates")
_LABELS = {
    "ai.backend.kernelspec": "1",
    "ai.backend.base-distro": "debian12",
    "ai.backend.runtime-type": "python",
    "ai.backend.runtime-path": "/usr/bin/python3",
    "ai.backend.resource.min.cpu": "1",
    "ai.backend.resource.min.mem": "64m",
    _TITLE: "backendai-ray default Python",
    _RECIPE: _LATEST_RECIPE,
    "org.opencontainers.image.version": f"3.11-{SUITE}",
}

Progress = Callable[[str], None]


def ensure_default_image(
    client: DockerClient, *, reference: str | None = None, progress: Progress | None = None
) -> str:
    """Have the default Python image in the engine; returns the reference under which it is there.

    Args:
        client: A client of the engine that will run the containers.
        reference: The image the cluster is configured with. Without one, or where the engine neither has it nor
            can pull it, the image made here is used.
        progress: Told one line for people per step; nothing is said when there is nothing to do.

    Raises:
        EngineUnavailable: The engine does not answer, or the image is missing and cannot be made here; the message
            says what to do.
    """
    report = progress or _silent
    try:
        if reference and reference != DEFAULT_REFERENCE:
            if _is_present(client, reference) or _pull(client, reference, report):
                return reference
            report(f"using {DEFAULT_REFERENCE} instead of {reference}")
        if not _is_current(client):
            _make(client, report)
    except DockerException as error:
        raise EngineUnavailable(f"The Docker engine failed: {error}") from error
    return DEFAULT_REFERENCE


def _silent(_line: str) -> None:
    pass


def _is_present(client: DockerClient, reference: str) -> bool:
    try:
        client.images.get(reference)
    except ImageNotFound:
        return False
    return True


def _is_current(client: DockerClient) -> bool:
    """Return whether the default image is there; one that somebody else made under this name is taken as it is."""
    try:
        labels = client.images.get(DEFAULT_REFERENCE).labels
    except ImageNotFound:
        return False
    return labels.get(_TITLE) != _LABELS[_TITLE] or labels.get(_RECIPE) == _LATEST_RECIPE


def _make(client: DockerClient, report: Progress) -> None:
    try:
        with _one_builder_at_a_time(report):
            if not _is_current(client):
                _build(client, report)
    except EngineUnavailable as error:
        if not _is_present(client, DEFAULT_REFERENCE):
            raise
        report(f"the {DEFAULT_REFERENCE} of an earlier release stays in use: {error.message}")


def _pull(client: DockerClient, reference: str, report: Progress) -> bool:
    report(f"pulling {reference}")
    try:
        client.images.pull(reference)
    except DockerException as error:
        report(f"{reference} cannot be pulled: {error}")
        return False
    return True


def _build(client: DockerClient, report: Progress) -> None:
    # Not under the user's TMPDIR when that is a small tmpfs: a rootfs is a few hundred MB. /var/tmp is on disk.
    with tempfile.TemporaryDirectory(prefix="backendai-ray-image-", dir="/var/tmp") as scratch:
        root = Path(scratch, "root")
        report(f"making {DEFAULT_REFERENCE} from Debian packages (about a minute, once)")
        build_rootfs(root, packages=_PACKAGES, report=report)
        _prepare_work_dir(root)
        report("importing it into the engine")
        import_rootfs(
            client,
            root,
            DEFAULT_REFERENCE,
            changes=[
                "ENV LANG=C.UTF-8",
                "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                f"WORKDIR {WORK_DIR}",
                'CMD ["python3"]',
                *(f'LABEL {key}="{value}"' for key, value in _LABELS.items()),
            ],
        )
        report(f"{DEFAULT_REFERENCE} is ready")


def _prepare_work_dir(root: Path) -> None:
    """Add the user ``work`` with its home, by hand: running the image's useradd would need a chroot that works."""
    for name, line in {
        "passwd": f"work:x:{WORK_UID}:{WORK_UID}::{WORK_DIR}:/bin/bash",
        "group": f"work:x:{WORK_UID}:",
        "shadow": "work:!:19000:0:99999:7:::",
    }.items():
        with (root / "etc" / name).open("a") as file:
            file.write(line + "\n")
    home = root / WORK_DIR.lstrip("/")
    home.mkdir(parents=True)
    os.chown(home, WORK_UID, WORK_UID)
    # `python` as people type it; the Debian package of that alias would be one more download.
    (root / "usr/bin/python").symlink_to("python3")


@contextmanager
def _one_builder_at_a_time(report: Progress) -> Iterator[None]:
    """Hold this machine's build lock: the second caller waits, then finds the image."""
    # The tool's own file is the lock: every installation on this machine sees it, and none is left behind.
    descriptor = os.open(find_debootstrap(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that makes {DEFAULT_REFERENCE}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
