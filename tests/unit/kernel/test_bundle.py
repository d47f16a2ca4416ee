"""The directories that are mounted into kernels."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backendai_ray.core.errors import InvalidParameter, Unavailable, UnsupportedByImage
from backendai_ray.kernel import pyzmq
from backendai_ray.kernel.bundle import precompile, pyzmq_for, runner_bundle
from backendai_ray.kernel.directories import DirectoryInMaking

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_a_bundle_is_complete_compiled_read_only_and_made_once(tmp_path: Path) -> None:
    bundle = runner_bundle(tmp_path)
    names = {path.name for path in bundle.rglob("*")}
    assert {"main.py", "bai_runner", "server.py"} <= names
    assert {f"server.{sys.implementation.cache_tag}.pyc"} <= names
    assert all(path.stat().st_mode & 0o222 == 0 for path in [bundle, *bundle.rglob("*")])
    assert runner_bundle(tmp_path) == bundle
    assert list(tmp_path.iterdir()) == [bundle]


def test_makers_at_the_same_time_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: runner_bundle(tmp_path), range(8)))
    assert len(made) == 1
    assert list(tmp_path.iterdir()) == list(made)


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with DirectoryInMaking(tmp_path / "target") as making:
            (making / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert not list(tmp_path.iterdir())


def test_precompiling_for_an_interpreter_keeps_the_bundle_read_only(tmp_path: Path) -> None:
    bundle = runner_bundle(tmp_path)
    precompile(bundle, Path(sys.executable))
    assert all(path.stat().st_mode & 0o222 == 0 for path in [bundle, *bundle.rglob("*")])


def test_the_agents_own_pyzmq_is_copied_without_its_tests(tmp_path: Path) -> None:
    own = pyzmq._own_interpreter()
    assert own is not None
    folder = pyzmq_for(tmp_path, OWN, own[1], own[2])
    assert not (folder / "zmq" / "tests").exists()
    code = "import zmq; print(zmq.__file__); zmq.Context().term()"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=True
    ).stdout
    assert loaded.startswith(str(folder))


def test_what_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="python"):
        pyzmq_for(tmp_path, "three", "glibc", "x86_64")
    with pytest.raises(InvalidParameter, match="libc"):
        pyzmq_for(tmp_path, "3.11", "newlib", "x86_64")
    with pytest.raises(InvalidParameter, match="arch"):
        pyzmq_for(tmp_path, "3.11", "glibc", "../x86")
    with pytest.raises(UnsupportedByImage, match=r"3\.7"):
        pyzmq_for(tmp_path, "3.6", "glibc", "x86_64")
    assert not list(tmp_path.iterdir())


def test_no_index_in_reach_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(Unavailable, match=r"CPython 3\.8"):
        pyzmq_for(tmp_path, "3.8", "glibc", "x86_64")
    assert not list(tmp_path.iterdir())


def test_a_python_that_has_no_wheel_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UnsupportedByImage, match="sparc"):
        pyzmq_for(tmp_path / "cache", "3.11", "glibc", "sparc")


def test_a_damaged_download_is_told(tmp_path: Path) -> None:
    wheel = tmp_path / "pyzmq.whl"
    wheel.write_bytes(b"not a zip")
    with pytest.raises(Unavailable, match="damaged"):
        pyzmq._unpack(wheel, tmp_path / "target", "CPython 3.8")
