"""Commands about a session's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from backendai_ray.cli import options
from backendai_ray.cli.output import output_for, size_text
from backendai_ray.cli.progress import transfer_progress


@click.command("upload")
@options.session_argument
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--to", "remote", default=".", show_default=True, help="Where in the session; a name, or a folder/.")
@options.json_option
def upload_command(session: str, files: Sequence[Path], remote: str, as_json: bool) -> None:
    """Copy FILES (files and folders) into SESSION.

    \b
    bai upload work data.csv src
    bai upload work data.csv --to in/2024.csv
    bai upload work *.csv --to in/
    """
    with options.make_client() as client:
        handle = client.sessions.get(session)
        with transfer_progress("uploading") as report:
            local = files[0] if len(files) == 1 else list(files)
            sent = handle.upload(local, remote, on_progress=report)
    output_for(as_json).done("\n".join(sent), {"session_id": handle.id, "files": sent})


@click.command("download")
@options.session_argument
@click.argument("files", nargs=-1, required=True)
@click.option("--to", "local", default=".", show_default=True, help="Where to; a folder/, or a new name for one file.")
@options.json_option
def download_command(session: str, files: Sequence[str], local: str, as_json: bool) -> None:
    """Copy FILES (files and folders) out of SESSION.

    \b
    bai download work out/result.csv
    bai download work out --to results/
    """
    with options.make_client() as client:
        handle = client.sessions.get(session)
        with transfer_progress("downloading") as report:
            remote = files[0] if len(files) == 1 else list(files)
            written = [str(path) for path in handle.download(remote, local, on_progress=report)]
    output_for(as_json).done("\n".join(written), {"session_id": handle.id, "files": written})


@click.command("ls")
@options.session_argument
@click.argument("path", default=".")
@options.json_option
def ls_command(session: str, path: str, as_json: bool) -> None:
    """List the files in a folder of SESSION.

    \b
    bai ls work out
    """
    with options.make_client() as client:
        found = client.sessions.get(session).ls(path)
    rows = [
        {
            **file.model_dump(mode="json"),
            "shown_size": size_text(file.size) if file.kind == "file" else file.kind,
            "shown_time": f"{file.modified_at:%Y-%m-%d %H:%M:%S}" if file.modified_at else "",
        }
        for file in found
    ]
    columns = (("MODE", "mode"), ("SIZE", "shown_size"), ("CHANGED (UTC)", "shown_time"), ("NAME", "name"))
    output_for(as_json).table(columns, rows, empty=f"{path} is empty.")
