"""Turn a folder into an image of the engine."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from backendai_ray.core.errors import EngineUnavailable

if TYPE_CHECKING:
    from docker import DockerClient

_CHUNK_BYTES = 1 << 20


def import_rootfs(client: DockerClient, root: Path, reference: str, *, changes: list[str]) -> None:
    """Import the folder ``root`` as the image ``reference``.

    The name is given last, so that nobody ever finds half an image under it.

    Args:
        client: A client of the engine.
        root: The folder that becomes ``/``; owners are kept by number.
        reference: ``NAME:TAG``.
        changes: Dockerfile lines such as ``CMD``, ``ENV`` or ``LABEL``.

    Raises:
        EngineUnavailable: The folder could not be packed, or the engine refused it.
    """
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-cf", "-", "."],
            stdout=subprocess.PIPE,
            stderr=complaints,
        ) as tar,
    ):
        assert tar.stdout is not None
        answer = client.api.import_image_from_stream(_chunks(tar.stdout), changes=changes)
        tar.wait()
        complaints.seek(0)
        complaint = complaints.read().decode(errors="replace").strip()
    image_id = _image_id(answer)
    if tar.returncode != 0:
        client.images.remove(image_id)
        raise EngineUnavailable(f"The image's files could not be packed: {complaint}")
    repository, _, tag = reference.rpartition(":")
    client.api.tag(image_id, repository, tag)


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _image_id(answer: str) -> str:
    """The id in the engine's answer: JSON lines, the last of which carries the id or an error."""
    last = json.loads(answer.strip().splitlines()[-1])
    if "error" in last:
        raise EngineUnavailable(f"The engine could not import the image: {last['error']}")
    return str(last["status"])
