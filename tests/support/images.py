"""Images that only tests need, made from Debian packages: a busybox of 1 MB, and R with its Jupyter kernel (48 MB).

Each is made once per machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from backendai_ray.images.importing import import_rootfs

NO_PYTHON = "backendai-ray-test/no-python:1"
EXITS_AT_ONCE = "backendai-ray-test/exits-at-once:1"
R_KERNEL = "backendai-ray-test/r-kernel:1"

_APPLETS = "awk cat chmod cp date dd echo env false find grep head hostname id kill ln ls mkdir mv nproc nslookup ping"
_APPLETS += " printf ps pwd rm sed sh sleep stat tail tar test touch tr true tty uname vi wc wget yes"

_R_PACKAGES = "r-base-core libblas3 liblapack3 libgfortran5 libquadmath0 libgomp1 libicu72 libtirpc3 libzmq5"
_R_PACKAGES += " libpgm-5.3-0 libnorm1 libsodium23 libbsd0 libmd0"
_R_LIBRARIES = "base64enc cli crayon digest ellipsis evaluate fansi fastmap glue htmltools irdisplay irkernel jsonlite"
_R_LIBRARIES += " lifecycle pbdzmq pillar repr rlang utf8 uuid vctrs"
"""R's kernel with what it loads; graphics, Tcl and the network are left out."""
_NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/R/doc", "usr/lib/R/library/translations", "usr/share/icons")


def ensure_no_python_image(client: docker.DockerClient) -> str:
    """An image with busybox alone: ``sh`` and the usual tools, no Python, no bash."""
    return _ensure(client, NO_PYTHON, ['CMD ["/bin/sh"]'])


def ensure_exits_at_once_image(client: docker.DockerClient) -> str:
    """The same, with an entrypoint that prints one line and ends with code 7."""
    return _ensure(client, EXITS_AT_ONCE, ['ENTRYPOINT ["/bin/sh", "-c", "echo leaving at once; exit 7"]'])


def ensure_r_image(client: docker.DockerClient, base: str) -> str:
    """The default image with R and IRkernel beside its Python; its labels say that it is an image for R."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            client.images.get(R_KERNEL)
        except ImageNotFound:
            with tempfile.TemporaryDirectory() as scratch:
                _add_to(client, base, _r_root(Path(scratch)), R_KERNEL, 'LABEL ai.backend.runtime-type="r"')
    return R_KERNEL


def _add_to(client: docker.DockerClient, base: str, root: Path, reference: str, change: str) -> None:
    container = client.containers.create(base, command="true")
    try:
        with tempfile.TemporaryFile() as archive:
            subprocess.run(["tar", "--owner=0", "--group=0", "-C", root, "-c", "."], check=True, stdout=archive)
            archive.seek(0)
            container.put_archive("/", archive)
        repository, _, tag = reference.rpartition(":")
        container.commit(repository, tag, changes=change)
    finally:
        container.remove(force=True)


def _r_root(scratch: Path) -> Path:
    root = scratch / "root"
    for package in _download([*_R_PACKAGES.split(), *(f"r-cran-{name}" for name in _R_LIBRARIES.split())], scratch):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True, capture_output=True)
    # In the image /lib is a link to /usr/lib, which a folder of that name would replace.
    shutil.copytree(root / "lib", root / "usr/lib", symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(root / "lib")
    for name in _NOT_NEEDED:
        shutil.rmtree(root / name, ignore_errors=True)
    shutil.copy(root / "usr/lib/R/etc/Renviron.ucf", root / "etc/R/Renviron")  # as the package's script would
    with (root / "etc/R/Rprofile.site").open("a") as profile:  # what PNGs are drawn with has been left out
        profile.write("\noptions(device = function(...) grDevices::pdf(NULL))\n")
    for library in ("blas", "lapack"):  # as Debian's alternatives would
        [path] = root.glob(f"usr/lib/*/{library}/lib{library}.so.3")
        (path.parents[1] / path.name).symlink_to(f"{library}/{path.name}")
    return root


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
    [package] = _download(["busybox-static"], scratch)
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


def _download(packages: Sequence[str], folder: Path) -> list[Path]:
    """Fetch Debian packages from the machine's mirror; its lists may be too old, or not there yet."""
    command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", *packages]
    if subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode:
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return sorted(folder.glob("*.deb"))
