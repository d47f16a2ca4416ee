"""What needs no kernel: messages, kernelspecs, and the choice among the forms of a value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backendai_ray.kernel.bai_runner.jupyter import richest
from backendai_ray.kernel.bai_runner.jupyter_wire import Wire
from backendai_ray.kernel.bai_runner.kernelspecs import find_kernelspecs


def test_a_message_arrives_as_it_was_sent_unless_somebody_touched_it() -> None:
    wire = Wire(b"key")
    message_id, frames = wire.pack("execute_request", {"code": "\N{SNOWMAN}"}, {"msg_id": "before"})
    message = wire.unpack([b"identity", *frames])
    assert message is not None
    assert message["header"]["msg_id"] == message_id
    assert (message["parent"], message["content"]) == ({"msg_id": "before"}, {"code": "\N{SNOWMAN}"})
    assert Wire(b"other key").unpack(frames) is None
    assert wire.unpack([*frames[:-1], b'{"code": "other"}']) is None
    assert wire.unpack(frames[:3]) is None
    assert wire.unpack([]) is None


def test_messages_of_the_real_client_are_understood() -> None:
    session = pytest.importorskip("jupyter_client.session").Session(key=b"key")
    wire = Wire(b"key")
    theirs = wire.unpack(session.serialize(session.msg("status", {"execution_state": "idle"})))
    assert theirs is not None
    assert theirs["content"] == {"execution_state": "idle"}
    _, frames = wire.pack("kernel_info_request", {})
    ours = session.deserialize(session.feed_identities(frames)[1])
    assert ours["msg_type"] == "kernel_info_request"


def test_kernelspecs_are_found_and_damaged_ones_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    specs = {
        first / "kernels/IR": {"argv": ["R"], "display_name": "R 4", "language": "R"},
        second / "kernels/ir": {"argv": ["other"]},
        second / "kernels/no-command": {"argv": []},
        second / "kernels/not a name": {"argv": ["x"]},
        second / "kernels/python": {"argv": ["x"]},
        second / "kernels/list": ["argv"],
        second / "kernels/env": {"argv": ["x"], "env": ["A"]},
    }
    for folder, said in specs.items():
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(said))
    (second / "kernels/empty").mkdir()
    monkeypatch.setenv("JUPYTER_PATH", f"{first}:{second}")
    found = find_kernelspecs()
    assert found["ir"]["argv"] == ["R"]
    assert (found["ir"]["title"], found["ir"]["language"], found["ir"]["interrupt_mode"]) == ("R 4", "R", "signal")
    assert not {"no-command", "not a name", "python", "list", "env", "empty"} & set(found)


@pytest.mark.parametrize(
    ("bundle", "shown"),
    [
        ({"text/plain": "[1] 2", "text/html": "2", "text/markdown": "2"}, ("text/plain", "[1] 2")),
        ({"text/plain": "1 2", "text/html": "<ol><li>1</li></ol>"}, ("text/plain", "1 2")),
        ({"text/plain": "a", "text/html": "<table></table>"}, ("text/html", "<table></table>")),
        ({"text/plain": "<Figure>", "image/png": "iVBO"}, ("image/png", "iVBO")),
        ({"text/plain": "<Markdown>", "text/markdown": "# x"}, ("text/markdown", "# x")),
        ({"text/plain": ["a\n", "b"]}, ("text/plain", "a\nb")),
        ({"application/json": {"a": 1}}, ("application/json", '{"a": 1}')),
        ({"application/x-unknown": "x"}, ("", "")),
    ],
)
def test_the_form_that_is_shown(bundle: dict[str, object], shown: tuple[str, str]) -> None:
    assert richest(bundle) == shown
