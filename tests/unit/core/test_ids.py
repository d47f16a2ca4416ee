"""What names and ids look like."""

from __future__ import annotations

from uuid import uuid4

import pytest

from backendai_ray.core.errors import InvalidParameter
from backendai_ray.core.ids import is_uuid, parse_agent_id, parse_run_id, parse_session_name


@pytest.mark.parametrize("name", ["a", "work", "My_Session.1-b", "x" * 64, "0"])
def test_names(name: str) -> None:
    assert parse_session_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "x" * 65,
        "-a",
        "a-",
        ".a",
        "a/b",
        "a b",
        "ä",
        "a\n",
        "a\0b",
        "../x",
        "1b4e28ba-2fa1-41d2-883f-0016d3cca427",
    ],
)
def test_no_names(name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_session_name(name, field="clientSessionToken")
    assert caught.value.details == {"field": "clientSessionToken"}
    assert caught.value.message.startswith("clientSessionToken: ")


@pytest.mark.parametrize("text", ["node-1", "a", "i-0abc.zone_1", "x" * 64])
def test_agent_ids(text: str) -> None:
    assert parse_agent_id(text) == text


@pytest.mark.parametrize("text", ["", "-a", "a b", "a:b", "x" * 65, "a\n"])
def test_no_agent_ids(text: str) -> None:
    with pytest.raises(InvalidParameter, match="is no agent id"):
        parse_agent_id(text)


@pytest.mark.parametrize("text", ["r", "run:1-a.b_c", "x" * 64])
def test_run_ids(text: str) -> None:
    assert parse_run_id(text) == text


@pytest.mark.parametrize("text", ["", "a b", "x" * 65, "a/b", "a\n"])
def test_no_run_ids(text: str) -> None:
    with pytest.raises(InvalidParameter, match="is no run id"):
        parse_run_id(text)


def test_uuids() -> None:
    text = str(uuid4())
    assert is_uuid(text)
    assert is_uuid(text.upper())
    for other in (text[:-1], text.replace("-", ""), f"{{{text}}}", "", "urn:uuid:" + text):
        assert not is_uuid(other)
