"""``bai up`` where only the client is installed says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["up", "down", "env", "status", "deploy"])
def test_it_names_the_extra(command: str) -> None:
    program = "import sys; sys.modules['pydantic_settings'] = None\n"
    program += f"from backendai_ray.cli.main import main; main(['{command}'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'backendai-ray[cluster]'" in done.stderr


def test_a_simulation_names_it_too() -> None:
    program = "import sys; sys.modules['numpy'] = None\n"
    program += "from backendai_ray.cli.main import main\n"
    program += "main(['simulate', '--nodes', 'n', '--trace', 't', '--policy', 'fifo'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'backendai-ray[cluster]'" in done.stderr


def test_a_plot_names_what_it_needs() -> None:
    program = "import sys; sys.modules['matplotlib'] = None\n"
    program += "from backendai_ray.cli.main import main\n"
    program += "main(['simulate', '--nodes', 'n', '--trace', 't', '--policy', 'fifo', '--plot', 'x.png'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'backendai-ray[plots]'" in done.stderr
