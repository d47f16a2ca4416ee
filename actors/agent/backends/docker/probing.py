"""What an image has inside: found out once per image id by a throw-away container, and kept on disk."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from docker.api.client import APIClient
from docker.errors import APIError, NotFound

from actors.agent.backends.docker.containers import LABEL
from backendai_ray import records
from backendai_ray.core.errors import KernelStartFailed
from backendai_ray.core.runtimes import Runtime
from backendai_ray.kernel.bai_runner import kernelspecs

PROBE_TIMEOUT_S = 60
_FORMAT = 2

# Lists the kernelspecs, then says what Python this is.
_ASK_PYTHON = (
    Path(kernelspecs.__file__).read_text()
    + """
import struct
try:
    libc = (os.confstr("CS_GNU_LIBC_VERSION") or "musl").split(" ")[0]
except (ValueError, OSError, AttributeError):
    libc = "musl"
print("BAI", sys.executable, "%d.%d" % sys.version_info[:2], sys.implementation.name, libc,
      os.uname()[4], struct.calcsize("P") * 8)
"""
)

# Looks where a login shell would and in the usual places; says which shell it is run by.
_SCRIPT = """
for name in "$@" python3 /usr/local/bin/python3 /usr/bin/python3 /opt/conda/bin/python3 /opt/venv/bin/python3 python; do
  [ -n "$name" ] && path=$(command -v "$name" 2>/dev/null) || continue
  "$path" -I -S -c "$BAI_ASK" 2>/dev/null && exit 0
done
exit 0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageContents:
    """What matters to us of what is in an image."""

    python: str = ""
    version: str = ""
    """``3.11``"""
    implementation: str = ""
    libc: str = ""
    """``glibc`` or ``musl``."""
    machine: str = ""
    shell: str = ""
    jupyter_kernels: tuple[Runtime, ...] = ()
    format: int = _FORMAT


class ContentsCache:
    """Probes images, and remembers by image id, which never means anything else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, api: APIClient, image_id: str, *, hint: str) -> ImageContents:
        """Return what an image has.

        Args:
            api: The engine.
            image_id: The image's digest.
            hint: Where the image's labels say its Python is; may be empty.

        Raises:
            KernelStartFailed: its containers cannot be run at all.
        """
        path = self._folder / f"{image_id.rpartition(':')[2]}.json"
        try:
            known = records.decode(path.read_bytes(), ImageContents)
            if known.format == _FORMAT:
                return known
        except (OSError, records.DecodeError):
            pass  # not looked at yet, or damaged: look again
        contents = _probe(api, image_id, hint)
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder)
        with os.fdopen(handle, "wb") as file:
            file.write(records.encode(contents))
        Path(temporary).replace(path)
        return contents


def _probe(api: APIClient, image_id: str, hint: str) -> ImageContents:
    with_shell = _run(api, image_id, ["/bin/sh", "-c", _SCRIPT, "sh", hint])
    if with_shell is not None:
        return _read_answer(with_shell, shell="/bin/sh")
    for python in filter(None, (hint, "python3", "/usr/local/bin/python3", "/usr/bin/python3")):
        answer = _run(api, image_id, [python, "-I", "-S", "-c", _ASK_PYTHON])
        if answer is not None:
            return _read_answer(answer, shell="")
    return ImageContents()


def _read_answer(output: str, *, shell: str) -> ImageContents:
    kernels = tuple(
        Runtime(name=words[1], language=words[2], title=words[3])
        for words in (line.split("\t") for line in output.splitlines())
        if words[0] == "RUNTIME" and len(words) == 4 and kernelspecs.is_name(words[1])
    )
    for line in output.splitlines():
        words = line.split(" ")
        if words[0] == "BAI" and len(words) == 7 and words[1].startswith("/"):
            return ImageContents(
                python=words[1],
                version=words[2],
                implementation=words[3],
                libc=words[4],
                machine=words[5],
                shell=shell,
                jupyter_kernels=kernels,
            )
    return ImageContents(shell=shell)


def _run(api: APIClient, image_id: str, command: list[str]) -> str | None:
    """Return what a command prints in a fresh container; ``None`` when the image does not have the command."""
    container = api.create_container(
        image_id,
        command=[],
        entrypoint=command,
        user="65534:65534",
        environment={"BAI_ASK": _ASK_PYTHON},
        labels={f"{LABEL}probe": "1"},
        host_config=api.create_host_config(
            network_mode="none",
            mem_limit=256 * 2**20,
            pids_limit=64,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        ),
    )["Id"]
    try:
        try:
            api.start(container)
        except APIError as error:
            if "executable file not found" in str(error) or "no such file or directory" in str(error):
                return None
            raise KernelStartFailed(f"the image's containers cannot be started: {error.explanation}") from error
        api.wait(container, timeout=PROBE_TIMEOUT_S)
        return bytes(api.logs(container, stdout=True, stderr=False)).decode(errors="replace")
    finally:
        try:
            api.remove_container(container, force=True, v=True)
        except NotFound:
            pass  # somebody cleaned up
