"""Turning a poll's frames into records."""

from __future__ import annotations

import pickle

import pytest

from actors.agent.runner_link import RunnerInfo, RunnerStatus, _console, _execute_frames, _run_output
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.execution import ExecMode, RunStatus


def test_neighbours_of_one_type_are_joined_before_they_are_decoded() -> None:
    euro = "€".encode()
    assert _console("ooe", [euro[:1], euro[1:], b"x"]) == (("stdout", "€"), ("stderr", "x"))


def test_every_kind_has_its_type_and_a_steps_end_has_none() -> None:
    frames = [b"a", b"image/png\nAAAA", b"<b>", b"<i>", b"note", b"build-finished 0"]
    assert _console("emhhls", frames) == (
        ("stderr", "a"),
        ("media", ("image/png", "AAAA")),
        ("html", "<b>"),
        ("html", "<i>"),
        ("log", "note"),
    )


def test_a_poll_without_output() -> None:
    output = _run_output("r", [b"waiting-input - 7 1 -"])
    assert (output.status, output.seq, output.exit_code) == (RunStatus.WAITING_INPUT, 7, None)
    assert (output.console, output.options) == ((), {"is_password": True})


def test_options_travel_as_pairs_and_empty_ones_not_at_all() -> None:
    frames = _execute_frames(
        "r", ExecMode.BATCH, "", {"clean": None, "build": "a=b\nc", "buildLog": False, "exec": "*"}
    )
    assert frames == (b"r", b"batch", b"", b"build=a=b\nc\0exec=*")
    with pytest.raises(InvalidParameter, match="NUL"):
        _execute_frames("r", ExecMode.BATCH, "", {"exec": "a\0b"})


def test_what_the_link_returns_can_be_pickled() -> None:
    info = RunnerInfo(1, 2, "3.11.2", "cpython", "python", 0.5, RunnerStatus(None, (), ("a",)))
    assert pickle.loads(pickle.dumps(info)) == info
    output = _run_output("r", [b"finished 0 1 0 o", b"2\n"])
    assert pickle.loads(pickle.dumps(output)) == output
