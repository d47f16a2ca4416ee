"""Ray set up on purpose: what must be in the environment before any Ray process of ours starts.

Each entry answers a default of Ray that hurts a control plane. Every process that joins a cluster (head, worker,
driver, test) must agree on them, so they are applied in one place.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_ALWAYS = {
    # Workers would run at nice 15 and be the kernel's first choice when memory is short.
    "RAY_worker_niceness": "0",
    "RAY_worker_oom_score_adjustment": "0",
    # Ray would kill its workers when the *node* is full, users' containers included.
    "RAY_memory_monitor_refresh_ms": "0",
    # The default notices a dead node after 13 s and a cut link after 64 s; this takes 1.5 s and 4 s.
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # Actors are few and long-lived: start them side by side, keep no idle spares, report nothing to anyone.
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


def apply_ray_environment(*, loopback_only: bool, token_file: Path | None) -> None:
    """Put our choices into this process's environment; what the operator set beforehand stays.

    Args:
        loopback_only: Bind every port of Ray to the loopback interface; only for a cluster of one machine.
        token_file: The cluster's shared secret; without one, authentication is off (a trusted network).
    """
    for name, value in _ALWAYS.items():
        os.environ.setdefault(name, value)
    if loopback_only:
        # The one switch that makes a single-node cluster truly local; a node address of 127.0.0.1 does not.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if token_file is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    else:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)


def ensure_token_file(path: Path) -> Path:
    """Return the file with the cluster's secret, made with a fresh one (mode 0600) when it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path
