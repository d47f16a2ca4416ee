"""Images that only tests need, made from Debian's static busybox: one download of 1 MB per machine."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from backendai_ray.images.importing import import_rootfs

NO_PYTHON = "backendai-ray-test/no-python:1"
EXITS_AT_ONCE = "backendai-ray-test/exits-at-once:1"

_APPLETS = "awk cat chmod cp date dd echo env false find grep head hostname id kill ln ls mkdir mv nproc nslookup ping"
_APPLETS += " printf ps pwd rm sed sh sleep stat tail tar test touch tr true tty uname vi wc wget yes"


def ensure_no_python_image(client: docker.DockerClient) -> str:
    """An image with busybox alone: ``sh`` and the usual tools, no Python, no bash."""
    return _ensure(client, NO_PYTHON, ['CMD ["/bin/sh"]'])


def ensure_exits_at_once_image(client: docker.DockerClient) -> str:
    """The same, with an entrypoint that prints one line and ends with code 7."""
    return _ensure(client, EXITS_AT_ONCE, ['ENTRYPOINT ["/bin/sh", "-c", "echo leaving at once; exit 7"]'])


def _ensure(client: docker.DockerClient, reference: str, changes: Sequence[str]) -> str:
    with Path(__file__).open() as lock:  # two test runs at once: the second finds the image
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            client.images.get(reference)
        except ImageNotFound:
            with tempfile.TemporaryDirectory() as scratch:
                root = _busybox_root(Path(scratch))
                import_rootfs(client, root, reference, changes=["ENV PATH=/bin", *changes])
    return reference


def _busybox_root(scratch: Path) -> Path:
    package = _download("busybox-static", scratch)
    unpacked = scratch / "unpacked"
    subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True, capture_output=True)
    root = scratch / "root"
    for name in ("bin", "etc", "tmp", "home/work", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (unpacked / "bin/busybox").rename(root / "bin/busybox")
    for applet in _APPLETS.split():
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nwork:x:1000:1000::/home/work:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nwork:x:1000:\n")
    os.chown(root / "home/work", 1000, 1000)
    return root


def _download(package: str, folder: Path) -> Path:
    """Fetch a Debian package from the machine's mirror; its lists may be too old, or not there yet."""
    command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", package]
    if subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode:
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return next(folder.glob(f"{package}_*.deb"))
