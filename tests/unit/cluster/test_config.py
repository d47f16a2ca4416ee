"""Settings: where they come from, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from backendai_ray.config import Settings, load_settings
from backendai_ray.core.errors import InvalidParameter
from backendai_ray.local_cluster import _to_wire, settings_from_wire


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BAI_CONFIG", "BAI_DATA_DIR", "BAI_API__PORT"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_need_nothing() -> None:
    settings = load_settings()
    assert settings.store_url.startswith("sqlite:///")
    assert settings.api.host == "127.0.0.1"


def test_the_file_then_options_then_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bai.toml"
    file.write_text('[api]\nport = 1001\nhost = "127.0.0.2"\n[manager]\nsweep_interval_s = 9\n')
    assert load_settings(file, api={"port": 1002}).api.port == 1002
    assert load_settings(file, api={"port": 1002}).api.host == "127.0.0.2"
    assert load_settings(file).manager.sweep_interval_s == 9
    monkeypatch.setenv("BAI_API__PORT", "1003")
    assert load_settings(file, api={"port": 1002}).api.port == 1003


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[api]\nport = 70000", "api.port"),
        ("[api]\nprot = 8000", "api.prot"),
        ("[apy]\nport = 8000", "apy"),
        ("[agent]\nbackend = 'lxc'", "agent.backend"),
        ("port = [", "config"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "bai.toml"
    file.write_text(text)
    with pytest.raises(InvalidParameter) as caught:
        load_settings(file)
    assert named in caught.value.message or caught.value.details["field"] == named


def test_the_daemon_gets_exactly_what_was_loaded(tmp_path: Path) -> None:
    settings = load_settings(
        data_dir=tmp_path,
        bus={"url": "redis://user:pass@127.0.0.1/0"},
        api={"port": 0},
        agent={"registries": {"hub.example": {"username": "me", "password": "token"}}},
    )
    again = settings_from_wire(_to_wire(settings))
    assert isinstance(again, Settings)
    assert again == settings
    assert "pass@" not in repr(settings)
    assert "token" not in repr(settings)
