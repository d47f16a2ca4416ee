"""What every kernel finds in its environment and file system, whatever it runs in."""

from __future__ import annotations

from typing import Final

from backendai_ray.core.device_plugins import Grant
from backendai_ray.core.sessions import KernelSpec

WORK_DIR: Final = "/home/work"
RUN_DIR: Final = "/run/backendai"
RUNNER_DIR: Final = "/opt/backendai/runner"
PYZMQ_DIR: Final = "/opt/backendai/lib"
SOCKET_NAME: Final = "s"
TOKEN_NAME: Final = "token"
BOOTSTRAP_NAME: Final = "bootstrap.sh"


def kernel_environ(spec: KernelSpec, grant: Grant) -> dict[str, str]:
    """Return a kernel's environment: the user's own, then what devices need, then what we say of the session."""
    counts: dict[str, int] = {}
    for host in spec.cluster_hosts:
        role = host.rstrip("0123456789")
        counts[role] = counts.get(role, 0) + 1
    return {
        **grant.defaults,
        **spec.environ,
        **grant.environ,
        "HOME": WORK_DIR,
        "USER": "work",
        "LOGNAME": "work",
        "LANG": spec.environ.get("LANG", "C.UTF-8"),
        "TERM": spec.environ.get("TERM", "xterm-256color"),
        "BACKENDAI_SESSION_ID": spec.session_id,
        "BACKENDAI_SESSION_NAME": spec.session_name,
        "BACKENDAI_KERNEL_ID": spec.kernel_id,
        "BACKENDAI_KERNEL_IMAGE": spec.image,
        "BACKENDAI_ACCESS_KEY": spec.access_key,
        "BACKENDAI_CLUSTER_SIZE": str(len(spec.cluster_hosts) or 1),
        "BACKENDAI_CLUSTER_REPLICAS": ",".join(f"{role}:{count}" for role, count in counts.items()) or "main:1",
        "BACKENDAI_CLUSTER_HOSTS": ",".join(spec.cluster_hosts) or spec.hostname,
        "BACKENDAI_CLUSTER_HOST": spec.hostname,
        "BACKENDAI_CLUSTER_ROLE": spec.role,
        "BACKENDAI_CLUSTER_IDX": str(spec.index),
        "BACKENDAI_CLUSTER_LOCAL_RANK": str(
            spec.cluster_hosts.index(spec.hostname) if spec.hostname in spec.cluster_hosts else 0
        ),
        "BACKENDAI_ADVISORY_SLOTS": ",".join(grant.advisory),
        "BACKENDAI_PREOPEN_PORTS": ",".join(str(port) for port in spec.preopen_ports),
        "BACKENDAI_SERVICE_PORTS": "",
    }


def runner_command(
    python: str,
    *,
    runner_dir: str,
    pyzmq_dir: str,
    run_dir: str,
    workdir: str,
    runtime: str,
    buffer_bytes: int,
    bootstrap: bool,
) -> list[str]:
    """Return the command that starts the runner; with ``bootstrap``, after the user's bootstrap script has run."""
    command = [
        *(python, "-u", f"{runner_dir}/main.py"),
        *("--socket", f"{run_dir}/{SOCKET_NAME}", "--workdir", workdir, "--run-dir", run_dir),
        *("--token-file", f"{run_dir}/{TOKEN_NAME}", "--buffer-bytes", str(buffer_bytes)),
        *("--runtime", runtime),
    ]
    if pyzmq_dir:
        command += ["--lib", pyzmq_dir]
    return with_bootstrap(command, run_dir) if bootstrap else command


def with_bootstrap(command: list[str], run_dir: str) -> list[str]:
    """Return a command that runs the user's bootstrap script first; a script that fails does not stop the session."""
    failed = 'echo "the bootstrap script failed with exit code $?" >&2'
    script = f'cd "$HOME"; /bin/sh {run_dir}/{BOOTSTRAP_NAME} || {failed}; exec "$@"'
    return ["/bin/sh", "-c", script, "sh", *command]
