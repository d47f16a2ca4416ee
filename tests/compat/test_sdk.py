"""The official client's Python library."""

from __future__ import annotations

import json
from textwrap import dedent
from typing import Any

import pytest

from tests.compat.conftest import Official

pytestmark = [pytest.mark.blackbox, pytest.mark.timeout(300)]


def _sync(official: Official, session: str, body: str) -> Any:
    """Run code that has ``api`` (the client) and ``cs`` (the session), and return what it stored in ``told``."""
    code = dedent(
        """
        import json
        from ai.backend.client.session import Session
        told = {}
        with Session() as api:
            cs = api.ComputeSession(%r)
        %s
        print(json.dumps(told, default=str))
        """
    ) % (session, _indented(body))
    return json.loads(official.python(code).splitlines()[-1])


def _async(official: Official, session: str, body: str) -> Any:
    code = dedent(
        """
        import asyncio, base64, json
        from ai.backend.client.session import AsyncSession
        told = {}
        async def main():
            async with AsyncSession() as api:
                cs = api.ComputeSession(%r)
        %s
        asyncio.run(main())
        print(json.dumps(told, default=str))
        """
    ) % (session, _indented(body, 8))
    return json.loads(official.python(code).splitlines()[-1])


def _indented(body: str, by: int = 4) -> str:
    return "\n".join(" " * by + line for line in dedent(body).strip().splitlines())


def test_versions_and_the_cluster(official: Official, session: str) -> None:
    told = _sync(
        official,
        session,
        """
        told["versions"] = api.System.get_versions()
        told["status"] = api.Manager.status()["status"]
        told["groups"] = api.ScalingGroup.list_available("default")
        told["slots"] = api.Resource.get_resource_slots()
        told["announcement"] = api.Manager.get_announcement()
        """,
    )
    assert told["versions"]["version"] == "v7.20230615"
    assert told["status"] == "running"
    assert "default" in [group["name"] for group in told["groups"]]
    assert {"cpu", "mem"} <= set(told["slots"])
    assert told["announcement"]["enabled"] is False


def test_info(official: Official, session: str) -> None:
    told = _sync(official, session, "told = dict(cs.get_info())")
    assert (told["status"], told["sessionName"]) == ("RUNNING", session)
    assert set(told) >= {"domainName", "groupName", "image", "age", "creationTime", "requestedSlots", "containerId"}


POLL = """
def run(mode, code, opts=None):
    out, result, run_id, polls = "", None, None, 0
    while True:
        result = cs.execute(run_id, code, mode=mode, opts=opts)
        polls += 1
        run_id = result["runId"]
        out += "".join(data for kind, data in result["console"] if kind == "stdout")
        if result["status"] == "finished":
            return out, result["exitCode"], polls
        mode, code, opts = ("input", "Ada", None) if result["status"] == "waiting-input" else ("continue", "", None)
"""


def test_polling(official: Official, session: str) -> None:
    told = _sync(
        official,
        session,
        POLL
        + """
told["state"] = [run("query", "x = 40")[0], run("query", "print(x + 2)")[0]]
told["input"] = run("query", "print('hello ' + input('name? '))")
told["batch"] = run("batch", "", {"exec": "echo out; exit 5"})
told["slow"] = run("query", "import time\\nfor i in range(3):\\n    print(i)\\n    time.sleep(1)")
""",
    )
    assert told["state"] == ["", "42\n"]
    assert told["input"][0] == "name? hello Ada\n"
    assert told["batch"][:2] == ["out\n", 5]
    assert told["slow"][0] == "0\n1\n2\n"
    assert told["slow"][2] >= 2


def test_many_changes_within_one_second(official: Official, session: str) -> None:
    """No signature is like another: the date that the client sends has microseconds."""
    told = _sync(official, session, POLL + 'told["runs"] = [run("query", f"print({i})")[0] for i in range(30)]')
    assert told["runs"] == [f"{i}\n" for i in range(30)]


def test_complete_and_interrupt(official: Official, session: str) -> None:
    told = _sync(
        official,
        session,
        """
        cursor = {"row": 0, "col": 2, "line": "pr", "post": ""}
        told["complete"] = cs.complete("pr", cursor)
        told["by_mode"] = cs.execute(code="pr", mode="complete", opts=cursor)
        cs.interrupt()
        """,
    )
    for result in (told["complete"]["result"], told["by_mode"]):
        assert result["status"] == "finished"
        assert any(text.startswith("pr") for text in result["completions"])


def test_upload_and_download(official: Official, session: str) -> None:
    (official.home / "data.bin").write_bytes(bytes(range(256)) * 20_000)
    told = _sync(
        official,
        session,
        """
        told["upload"] = cs.upload(["data.bin"]).status
        told["listed"] = [f["filename"] for f in json.loads(cs.list_files(".")["files"])]
        import os; os.mkdir("down")
        told["names"] = cs.download(["data.bin"], "down")["file_names"]
        """,
    )
    assert told["upload"] == 204
    assert "data.bin" in told["listed"]
    assert told["names"] == ["data.bin"]
    assert (official.home / "down" / "data.bin").read_bytes() == bytes(range(256)) * 20_000


def test_streamed_execution(official: Official, session: str) -> None:
    told = _async(
        official,
        session,
        """
        frames = []
        async with cs.stream_execute("print('a')\\nprint('got ' + input())") as stream:
            async for message in stream:
                frames.append(json.loads(message.data))
                if frames[-1]["status"] == "waiting-input":
                    await stream.send_str("b")
        told["last"] = frames[-1]["status"]
        told["text"] = "".join(d for f in frames for k, d in f["console"] if k == "stdout")
        """,
    )
    assert told == {"last": "finished", "text": "a\ngot b\n"}


def test_terminal(official: Official, session: str) -> None:
    """The official client's own ``resize()`` does not work (it uses a slot that nobody fills), so frames are sent."""
    told = _async(
        official,
        session,
        """
        def stdin(text):
            return {"type": "stdin", "chars": base64.b64encode(text.encode()).decode()}
        seen = ""
        async with cs.stream_pty() as pty:
            await pty.send_json({"type": "resize", "rows": 40, "cols": 100})
            await pty.send_json({"type": "ping"})
            await pty.send_json(stdin("echo on-the-$((40 + 2))-terminal\\n"))
            async with asyncio.timeout(30):
                while "-terminal" not in seen:
                    frame = json.loads((await pty.receive_str()))
                    if frame["type"] == "out":
                        seen += base64.b64decode(frame["data"]).decode()
        told["seen"] = seen
        """,
    )
    assert "-terminal" in told["seen"]


def test_events(official: Official, session: str) -> None:
    told = _async(
        official,
        session,
        """
        told["events"] = []
        async with cs.listen_events(scope="session") as stream:
            await cs.destroy()
            async for event in stream:
                told["events"].append([event.event, json.loads(event.data)])
        """,
    )
    names = [name for name, _ in told["events"]]
    assert names[-2:] == ["session_terminated", "server_close"]
    assert told["events"][0][1]["sessionName"] == session


def test_errors(official: Official, session: str) -> None:
    told = _sync(
        official,
        session,
        """
        from ai.backend.client.exceptions import BackendAPIError
        for name, call in {
            "missing": lambda: api.ComputeSession("nobody").get_info(),
            "field": lambda: api.ComputeSession.get_or_create("python", name="bad name"),
            "folders": lambda: api.VFolder.list(),
        }.items():
            try:
                call()
            except BackendAPIError as exc:
                told[name] = [exc.status, exc.data["type"], exc.data["msg"]]
        """,
    )
    assert told["missing"][:2] == [404, "https://api.backend.ai/probs/session-not-found"]
    assert told["field"][:2] == [400, "https://api.backend.ai/probs/invalid-api-params"]
    assert told["folders"][0] == 404
