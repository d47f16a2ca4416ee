"""Who starts the engine ends it, and nobody else's engine is touched.

The commands are real; the machine is not: ``dockerd`` and the question whether an engine answers (asked through
``python3``) are stand-ins, put first on the PATH, so that the engine in use here is left alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.requirements import missing
from tests.support.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]
SETUP = REPOSITORY / "scripts" / "system-setup"
WITH_SYSTEM = [sys.executable, str(REPOSITORY / "scripts" / "with-system")]

STANDS_IN_FOR_DOCKERD = """#!/bin/bash
trap 'rm -f "$MACHINE/answers"; exit 0' TERM
touch "$MACHINE/answers"
while :; do sleep 0.05; done
"""


class Machine:
    """A machine with everything installed and no engine running."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.answers = folder / "answers"
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "DOCKER_HOST"},
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "MACHINE": str(folder),
            "BACKENDAI_RAY_RUN_DIR": str(self.run_dir),
        }
        self.install("python3", '#!/bin/bash\n[[ -e "$MACHINE/answers" ]]\n')
        self.install("dockerd", STANDS_IN_FOR_DOCKERD)

    def install(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(script)
        path.chmod(0o755)

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *command: str | Path) -> tuple[int, str]:
        process = self.start(*command)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def engine_runs(self) -> bool:
        return self.answers.exists()

    def files(self) -> list[str]:
        return sorted(path.name for path in self.run_dir.glob("*"))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid() != 0:
        missing("only root starts an engine")
    machine = Machine(tmp_path)
    yield machine
    machine.run(SETUP, "--stop")


def test_the_engine_lives_as_long_as_the_command(machine: Machine) -> None:
    code, _ = machine.run(*WITH_SYSTEM, "bash", "-c", '[[ -e "$MACHINE/answers" ]] && exit 7')
    assert code == 7
    assert not machine.engine_runs()
    assert not machine.run_dir.exists()


def test_the_last_of_two_runs_ends_the_engine(machine: Machine) -> None:
    wait_for = '; until [[ -e "$MACHINE/{0}" ]]; do sleep 0.05; done'
    folder = machine.answers.parent
    first = machine.start(*WITH_SYSTEM, "bash", "-c", "touch $MACHINE/one-runs" + wait_for.format("end-one"))
    second = machine.start(*WITH_SYSTEM, "bash", "-c", "touch $MACHINE/two-runs" + wait_for.format("end-two"))
    wait_until(lambda: (folder / "one-runs").exists() and (folder / "two-runs").exists(), timeout_s=30)
    (folder / "end-one").touch()
    assert first.wait(30) == 0
    assert machine.engine_runs()
    (folder / "end-two").touch()
    assert second.wait(30) == 0
    assert not machine.engine_runs()
    assert not machine.run_dir.exists()


def test_an_engine_that_ran_before_is_left_alone(machine: Machine) -> None:
    machine.answers.touch()
    assert machine.run(*WITH_SYSTEM, "true")[0] == 0
    assert machine.run(SETUP, "--stop")[0] == 0
    assert machine.engine_runs()


def test_an_engine_that_somebody_asked_for_stays_until_it_is_stopped(machine: Machine) -> None:
    assert machine.run(SETUP)[0] == 0
    assert machine.run(SETUP)[0] == 0  # nothing to do the second time
    assert machine.run(*WITH_SYSTEM, "true")[0] == 0
    assert machine.engine_runs()
    assert machine.run(SETUP, "--stop")[0] == 0
    assert not machine.engine_runs()
    assert not machine.run_dir.exists()


def test_a_terminated_run_ends_its_command_and_the_engine(machine: Machine) -> None:
    started = machine.answers.parent / "started"
    run = machine.start(*WITH_SYSTEM, "bash", "-c", "touch $MACHINE/started; exec sleep 1000")
    wait_until(started.exists, timeout_s=30)
    run.terminate()
    assert run.wait(30) == 128 + 15
    assert not machine.engine_runs()


def test_an_engine_that_cannot_start_is_a_sentence_and_a_code(machine: Machine) -> None:
    machine.install("dockerd", "#!/bin/bash\necho 'no control groups here' >&2\nexit 1\n")
    code, output = machine.run(SETUP)
    assert code == 5
    assert "no control groups here" in output
    assert "does not start on this machine" in output
    code, output = machine.run(*WITH_SYSTEM, "--require", "echo", "tests ran")
    assert code == 5
    assert "tests ran" not in output
    code, output = machine.run(*WITH_SYSTEM, "echo", "the demo ran without an engine")
    assert code == 0
    assert "the demo ran without an engine" in output


def test_an_engine_elsewhere_that_does_not_answer_is_not_replaced(machine: Machine) -> None:
    machine.environment["DOCKER_HOST"] = "tcp://127.0.0.1:9"
    code, output = machine.run(SETUP)
    assert code == 5
    assert "DOCKER_HOST" in output
    assert not machine.engine_runs()


def test_a_recycled_pid_is_not_killed(machine: Machine) -> None:
    bystander = machine.start("sleep", "1000")
    try:
        machine.run_dir.mkdir()
        (machine.run_dir / "dockerd.started").write_text(f"{bystander.pid} 1\n")
        assert machine.run(SETUP, "--stop")[0] == 0
        assert bystander.poll() is None
        assert machine.files() == []
    finally:
        bystander.kill()
        bystander.wait()


def test_wrong_usage_prints_how_it_is_used(machine: Machine) -> None:
    code, output = machine.run(SETUP, "--nonsense")
    assert code == 2
    assert "scripts/system-setup --stop" in output
