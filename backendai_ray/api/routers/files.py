"""Files of a session: upload, download, list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from secrets import token_hex
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from actors.contracts import FileEntry
from backendai_ray.api.answers import encode, nothing, plain
from backendai_ray.api.context import ContextDep
from backendai_ray.api.downloads import Download
from backendai_ray.api.multipart import boundary_of, read_parts
from backendai_ray.api.requests import ApiRoute, CallerDep
from backendai_ray.api.routers.names import SessionName, errors
from backendai_ray.api.uploads import Upload
from backendai_ray.core.errors import InvalidParameter, RequestTimeout, TooLarge
from backendai_ray.core.paths import WORK_DIR, parse_session_path

router = APIRouter(route_class=ApiRoute, tags=["files"])

MAX_PATHS = 1000
_MULTIPART_OVERHEAD = 2**20
_SILENCE_S = 120.0


class DownloadBody(BaseModel):
    """Which files to download (the official client sends a body with its GET)."""

    model_config = ConfigDict(extra="forbid")

    files: list[str] = Field(default_factory=list, max_length=MAX_PATHS)
    file: str | None = None


class ListBody(BaseModel):
    """Which folder to list (the official client sends a body with its GET)."""

    model_config = ConfigDict(extra="forbid")

    path: str = "."


_UPLOAD_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"src": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}


@router.post(
    "/session/{name}/upload",
    summary="Upload files",
    status_code=204,
    responses=errors(404, 409),
    openapi_extra=_UPLOAD_SCHEMA,
)
async def upload(request: Request, context: ContextDep, caller: CallerDep, name: SessionName) -> Response:
    """Write files into the session's folder; a part's filename (percent-encoded) is the path there.

    The files appear together once all have arrived; if anything goes wrong before, none does.
    """
    limit = context.settings.api.max_upload_bytes
    boundary = boundary_of(request.headers.get("content-type", ""))
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > limit + _MULTIPART_OVERHEAD:
        raise TooLarge(f"an upload may have {limit} bytes; this one has {told}", limit_bytes=limit)
    await context.reach.route(caller.access_key, name)
    taken = Upload(context.reach, caller.access_key, name, max_bytes=limit)
    await taken.take(read_parts(_never_silent(request), boundary))
    return nothing()


@router.get(
    "/session/{name}/download",
    summary="Download files as a tar",
    responses={200: {"content": {"multipart/mixed": {}}, "description": "One part: a tar."}, **errors(404, 409)},
)
async def download(
    context: ContextDep,
    caller: CallerDep,
    name: SessionName,
    body: DownloadBody | None = None,
    files: Annotated[list[str] | None, Query(description="Paths; instead of a body.", max_length=MAX_PATHS)] = None,
) -> Response:
    """Return files and folders as one tar, in a multipart answer as the official client expects it."""
    paths = _paths([*(body.files if body else ()), *(files or ())])
    prepared = await Download.open(context.reach, caller.access_key, name, paths, archive=True)
    boundary = token_hex(16)
    head = (
        f"--{boundary}\r\nContent-Type: application/x-tar\r\nContent-Length: {prepared.size}\r\n"
        'Content-Disposition: attachment; filename="files.tar"\r\n\r\n'
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    async def content() -> AsyncIterator[bytes]:
        yield head
        async for chunk in prepared.chunks():
            yield chunk
        yield tail

    return StreamingResponse(
        content(),
        media_type=f"multipart/mixed; boundary={boundary}",
        headers={"Content-Length": str(len(head) + prepared.size + len(tail))},
    )


@router.get(
    "/session/{name}/download_single",
    summary="Download a file",
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file."}, **errors(404, 409)},
)
async def download_single(
    context: ContextDep,
    caller: CallerDep,
    name: SessionName,
    body: DownloadBody | None = None,
    file: Annotated[str | None, Query(description="The path; instead of a body.")] = None,
) -> Response:
    """Return one file as it is."""
    wanted = file or (body.file if body else None)
    if not wanted:
        raise InvalidParameter("file: name the file to download", field="file")
    paths = _paths([wanted])
    prepared = await Download.open(context.reach, caller.access_key, name, paths, archive=False)
    filename = quote(PurePosixPath(paths[0]).name)
    return StreamingResponse(
        prepared.chunks(),
        media_type="application/octet-stream",
        headers={
            "Content-Length": str(prepared.size),
            "Content-Disposition": f"attachment; filename*=utf-8''{filename}",
        },
    )


@router.get("/session/{name}/files", summary="List a folder", responses=errors(404, 409))
async def list_files(
    context: ContextDep,
    caller: CallerDep,
    name: SessionName,
    body: ListBody | None = None,
    path: Annotated[str | None, Query(description="The folder; instead of a body.")] = None,
) -> Response:
    """Return what is in a folder: `files` as JSON text for the official client, `entries` as it is."""
    folder = str(parse_session_path(path or (body.path if body else ".")))
    found = await context.reach.agent(caller.access_key, name, lambda agent, route: agent.list_files(route, folder))
    entries = [_entry(entry) for entry in found]
    return plain(
        {
            "files": encode(entries).decode(),
            "errors": "",
            "folder_path": folder,
            "abspath": str(WORK_DIR / folder),
            "entries": entries,
        }
    )


def _entry(entry: FileEntry) -> dict[str, Any]:
    return {
        "filename": entry.name,
        "kind": entry.kind,
        "size": entry.size,
        "mode": entry.mode,
        "mtime": entry.modified_at,
    }


def _paths(given: list[str]) -> list[str]:
    if not given:
        raise InvalidParameter("files: name at least one path", field="files")
    if len(given) > MAX_PATHS:
        raise InvalidParameter(f"files: more than {MAX_PATHS} paths; name their folder", field="files")
    return [str(parse_session_path(path, field="files")) for path in dict.fromkeys(given)]


async def _never_silent(request: Request) -> AsyncIterator[bytes]:
    """Yield the body, which is bounded by the reader and not as JSON is; give up on a client that stopped sending."""
    body = Request.stream(request)
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                chunk = await anext(body, None)
        except TimeoutError:
            raise RequestTimeout(f"the upload stood still for {_SILENCE_S:.0f} s") from None
        if chunk is None:
            return
        yield chunk
