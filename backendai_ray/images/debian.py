"""A minimal Debian root file system, unpacked by debootstrap from the mirror this machine's apt is configured for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from backendai_ray.core.errors import EngineUnavailable

SUITE = "bookworm"

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUILD_TIMEOUT_S = 1800
#: Steps of debootstrap worth a line for people; it says hundreds.
_MILESTONES = ("Retrieving Packages", "Validating Packages", "Extracting dpkg", "Configuring the base system")
_USELESS_IN_A_CONTAINER = (
    "var/cache/apt/archives",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
)


def build_rootfs(root: Path, *, packages: Sequence[str], report: Callable[[str], None]) -> None:
    """Unpack a minimal Debian with ``packages`` into ``root``, which must not exist yet.

    Raises:
        EngineUnavailable: debootstrap, root or a mirror is missing, or debootstrap failed; the message says which.
    """
    debootstrap = find_debootstrap()
    if os.geteuid() != 0:
        raise _cannot("only root can unpack a Debian system. Run this once as root: python -m backendai_ray.images")
    mirror = find_mirror()
    command = [debootstrap, "--variant=minbase", f"--include={','.join(packages)}", SUITE, str(root), mirror]
    _run_debootstrap(command, report)
    _remove_useless(root)


def find_debootstrap() -> str:
    """Returns the path of the tool.

    Raises:
        EngineUnavailable: It is not installed.
    """
    path = shutil.which("debootstrap", path=_SYSTEM_PATH)
    if path is None:
        raise _cannot("debootstrap is not installed. As root: apt-get install debootstrap (or: make system)")
    return path


def find_mirror() -> str:
    """Returns the address of the Debian archive in this machine's apt configuration.

    Raises:
        EngineUnavailable: apt is not there or names no Debian archive.
    """
    try:
        listing = subprocess.run(
            # Without release info it answers from the configuration alone, before any `apt-get update`.
            ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise _cannot(f"apt does not say which mirror this machine uses: {error}") from error
    mirror = choose_mirror(listing)
    if mirror is None:
        raise _cannot("apt's configuration names no Debian archive with a 'main' component")
    return mirror


def choose_mirror(listing: str) -> str | None:
    """Pick the archive out of lines ``URI RELEASE COMPONENT``: the one that has our suite, else any Debian one.

    A mirror of another Debian release carries our suite as well; a security or third-party archive does not.
    """
    rows = [row for row in (line.split() for line in listing.splitlines()) if len(row) == 3 and row[2] == "main"]
    for uri, release, _component in rows:
        if release == SUITE:
            return uri
    for uri, _release, _component in rows:
        if uri.rstrip("/").endswith("/debian"):
            return uri
    return None


def _run_debootstrap(command: list[str], report: Callable[[str], None]) -> None:
    environment = {"PATH": _SYSTEM_PATH, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **_proxy_settings()}
    tail: list[str] = []
    with subprocess.Popen(
        ["timeout", str(_BUILD_TIMEOUT_S), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail = [*tail[-9:], line.rstrip()]
            message = line.removeprefix("I: ").strip()
            if message.startswith(_MILESTONES):
                report(message.rstrip("."))
    if process.returncode != 0:
        raise _cannot("debootstrap failed: " + " | ".join(tail), exit_code=process.returncode)


def _proxy_settings() -> dict[str, str]:
    """The proxy that apt uses, for debootstrap's own downloads; else whatever the environment says."""
    settings = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    found = subprocess.run(
        ["apt-config", "shell", "http_proxy", "Acquire::http::Proxy"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout.strip()
    name, _, value = found.partition("=")
    if name == "http_proxy" and value.strip("'") not in ("", "DIRECT"):
        settings["http_proxy"] = value.strip("'")
    return settings


def _remove_useless(root: Path) -> None:
    for name in _USELESS_IN_A_CONTAINER:
        folder = root / name
        if folder.is_dir():
            shutil.rmtree(folder)
            folder.mkdir()
    # Bytecode stays: who runs in a container may not write it, so every start would compile the library again.


def _cannot(reason: str, **details: object) -> EngineUnavailable:
    return EngineUnavailable(f"The default image is not in the engine and cannot be made here: {reason}.", **details)
