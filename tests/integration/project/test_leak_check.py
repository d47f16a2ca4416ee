"""A run that leaves a process behind fails, even when the process became a daemon and every test passed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]


def _run_pytest(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(REPOSITORY / "pyproject.toml")]
    return subprocess.run(
        [*command, "--confcutdir", str(folder), "-p", "no:cacheprovider", str(folder / "test_it.py")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def _is_running(pid: str) -> bool:
    try:
        return bool(Path("/proc", pid, "cmdline").read_bytes())  # empty for one that waits to be reaped
    except OSError:
        return False


def test_a_daemon_left_behind_fails_the_run_and_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    result = _run_pytest(
        tmp_path,
        "import subprocess\n"
        "def test_it():\n"
        "    daemon = subprocess.Popen(['sleep', '987'], start_new_session=True)\n"
        f"    open({str(pid_file)!r}, 'w').write(str(daemon.pid))\n",
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "left behind by this test run: process" in result.stdout
    assert "sleep 987" in result.stdout
    wait_until(lambda: not _is_running(pid_file.read_text()))


def test_a_run_that_ends_what_it_started_passes(tmp_path: Path) -> None:
    result = _run_pytest(tmp_path, "import subprocess\ndef test_it():\n    subprocess.run(['true'], check=True)\n")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "left behind" not in result.stdout
