"""The main job on real input, from an empty machine to an empty machine: ``python -m backendai_ray.demo``.

Starts a cluster, uploads a program and its data, runs it with its output streaming, runs a second cell on the first
one's state, a batch session from a startup command and a gang of two containers, downloads the result, ends
everything and looks whether anything is left. The exit code is 0 only if every phase did what it should.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backendai_ray.client import Client, Session
from backendai_ray.core.errors import BackendError
from backendai_ray.demo_checks import Trace, leftovers

if TYPE_CHECKING:
    from backendai_ray.config import Settings
    from backendai_ray.local_cluster import LocalCluster

DATA = Path(__file__).parent / "demo_data"
PROGRAM = "clocks.py"
DATA_FILES = ("zone1970.tab", "tzdata.zi")
_CLEAN_WITHIN_S = 10.0
_NODE_WITHIN_S = 60.0
_GANG_PORT = 5000

FIRST_CELL = "from clocks import analyse, write\nrows = analyse()"
SECOND_CELL = """
rows.sort(key=lambda row: -abs(row["off_min"]))
for row in rows[:3]:
    print(f'{row["place"]:22} {row["off_min"]:+7.1f} min; the sun is highest at up to {row["latest_noon"]}')
print("wrote", write(rows))
"""
PI_PROGRAM = """
def pi_digits(n):
    def arctan_of_inverse(x, one):
        total = term = one // x
        k, sign = 3, -1
        while term:
            term //= x * x
            total += sign * (term // k)
            k, sign = k + 2, -sign
        return total
    one = 10 ** (n + 10)
    return str((16 * arctan_of_inverse(5, one) - 4 * arctan_of_inverse(239, one)) // 10 ** 10)
print("the first 1000 decimals of pi end with", pi_digits(1000)[-10:])
"""
PI_LAST_DECIMALS = "2164201989"
"""The 991st to 1000th decimal of pi, as every table of it has them."""
SUB_SERVER = f"""
import json, socket, socketserver
class Summing(socketserver.StreamRequestHandler):
    def handle(self):
        numbers = json.loads(self.rfile.readline())
        answer = {{"host": socket.gethostname(), "count": len(numbers), "sum": sum(numbers)}}
        self.wfile.write(json.dumps(answer).encode() + b"\\n")
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("0.0.0.0", {_GANG_PORT}), Summing).serve_forever()
"""
GANG_CELL = f"""
import csv, json, socket, time
numbers = [abs(float(row["off_min"])) for row in csv.DictReader(open("clocks.csv"))]
half = len(numbers) // 2
for attempt in range(100):
    try:
        connection = socket.create_connection(("sub1", {_GANG_PORT}), timeout=5)
        break
    except OSError:
        time.sleep(0.1)
else:
    raise SystemExit("sub1 does not answer")
with connection:
    connection.sendall(json.dumps(numbers[half:]).encode() + b"\\n")
    answer = json.loads(connection.makefile().readline())
mean = (sum(numbers[:half]) + answer["sum"]) / len(numbers)
print(f'{{socket.gethostname()}} added {{half}} numbers, {{answer["host"]}} {{answer["count"]}}; mean {{mean:.3f}}')
"""


class PhaseFailed(Exception):
    """A phase did not do what it should."""


@dataclass(slots=True)
class Phase:
    """What happened in one step of the demo."""

    name: str
    seconds: float = 0.0
    ok: bool = False
    result: str = ""


@dataclass(slots=True)
class Report:
    """Everything that happened; prints it as it does, unless it is to be JSON at the end."""

    quiet: bool
    phases: list[Phase] = field(default_factory=list)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Run a step, time it and say how it went."""
        phase = Phase(name)
        self.phases.append(phase)
        self.say(f"\n▶ {name}")
        began = time.perf_counter()
        try:
            yield phase
            phase.ok = True
        except BaseException as exc:
            phase.result = exc.message if isinstance(exc, BackendError) else str(exc) or type(exc).__name__
            raise
        finally:
            phase.seconds = time.perf_counter() - began
            self.say(f"  {'✓' if phase.ok else '✗'} {phase.result}  ({phase.seconds:.2f} s)")

    def say(self, text: str) -> None:
        """Print a line for people."""
        if not self.quiet:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    @property
    def ok(self) -> bool:
        """Whether every phase did what it should."""
        return all(phase.ok for phase in self.phases)

    def finish(self) -> None:
        """Print the summary: a table, or JSON."""
        if self.quiet:
            sys.stdout.write(json.dumps({"ok": self.ok, "phases": [asdict(p) for p in self.phases]}) + "\n")
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table("", "phase", "seconds", "result", box=box.SIMPLE_HEAD, pad_edge=False)
        table.columns[2].justify = "right"
        for phase in self.phases:
            table.add_row("✓" if phase.ok else "✗", phase.name, f"{phase.seconds:.2f}", phase.result)
        total = sum(phase.seconds for phase in self.phases)
        Console(highlight=False, markup=False).print("\n", table)
        self.say(f"{'Everything worked' if self.ok else 'Something failed'}, in {total:.1f} s.")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m backendai_ray.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=["auto", "docker", "process"], default="auto")
    parser.add_argument("--json", action="store_true", help="print nothing but a JSON report at the end")
    options = parser.parse_args(arguments)
    report = Report(quiet=options.json)
    # Short, because the paths of Unix sockets in it must be.
    folder = Path(tempfile.mkdtemp(prefix="bd-", dir="/tmp"))
    trace = Trace.begin(folder)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    session_ids: list[str] = []
    interrupted = False
    try:
        _run(report, folder, options.backend, session_ids)
    except KeyboardInterrupt:
        interrupted = True
    except (BackendError, PhaseFailed, OSError):
        pass  # its phase has told it
    finally:
        _check_clean(report, trace, session_ids)
    report.finish()
    return 130 if interrupted else 0 if report.ok else 1


def _run(report: Report, folder: Path, backend: str, session_ids: list[str]) -> None:
    cluster = _start_cluster(report, folder / "data", backend)
    try:
        with Client(cluster.endpoint, cluster.access_key, cluster.secret_key) as client:
            with report.phase("wait for the node") as phase:
                phase.result = _wait_for_node(client)
            result = _interactive(report, client, folder, session_ids)
            _batch(report, client, session_ids)
            _gang(report, client, result, session_ids)
    finally:
        with report.phase("end the cluster") as phase:
            cluster.stop()
            phase.result = "sessions, actors, event bus and Ray have ended"


def _start_cluster(report: Report, data_dir: Path, backend: str) -> LocalCluster:
    from backendai_ray.local_cluster import LocalCluster

    with report.phase("start a cluster") as phase:
        cluster = LocalCluster.start(_settings(data_dir, backend), on_progress=lambda text: report.say(f"  … {text}"))
        phase.result = f"it answers at {cluster.endpoint}"
    return cluster


def _wait_for_node(client: Client) -> str:
    deadline = time.monotonic() + _NODE_WITHIN_S
    while not (nodes := [node for node in client.agents() if node.schedulable]):
        _expect(time.monotonic() < deadline, f"no node within {_NODE_WITHIN_S:g} s: {client.agents()}")
        time.sleep(0.05)
    has = ", ".join(f"{slot} {amount}" for slot, amount in nodes[0].capacity.items())
    return f"node {nodes[0].id} ({nodes[0].backend}) with {has}"


def _settings(data_dir: Path, backend: str) -> Settings:
    from backendai_ray.config import load_settings

    # Two containers of the gang run at once, whatever the size of the machine; and a node id of its own, so that the
    # containers of a cluster that runs beside the demo on the same engine are none of its business.
    node_id = f"demo-{data_dir.parent.name}"
    agent = {"backend": backend, "node_id": node_id, "cpu_overcommit": 4.0, "reserved_mem": "0"}
    return load_settings(data_dir=data_dir, api={"port": 0}, agent=agent)


def _interactive(report: Report, client: Client, folder: Path, session_ids: list[str]) -> Path:
    with report.phase("start an interactive session") as phase:
        session = client.sessions.create("python", name="demo", cpu=1, mem="256m", on_progress=_teller(report))
        session_ids.append(session.id)
        phase.result = f"{session.name} {session.id}"
    with report.phase("upload a program and its data") as phase:
        paths = session.upload([DATA / name for name in (PROGRAM, *DATA_FILES)])
        size = sum((DATA / name).stat().st_size for name in paths)
        phase.result = f"{', '.join(paths)}: {size} bytes"
    with report.phase("run it, its output streaming") as phase:
        phase.result = _stream(report, session)
    with report.phase("run a second cell on the first one's state") as phase:
        outcome = session.run(SECOND_CELL)
        report.say(textwrap.indent(outcome.stdout.rstrip(), "  │ "))
        _expect(outcome.ok, f"exit code {outcome.exit_code}: {outcome.stderr}")
        phase.result = "the rows of the first cell were there"
    with report.phase("download the result") as phase:
        [result] = session.download("out/clocks.csv", folder)
        with result.open(newline="") as file:
            rows = list(csv.DictReader(file))
        _expect(len(rows) > 300, f"{result} has only {len(rows)} rows")
        phase.result = f"{result.name}: {len(rows)} rows; farthest from the sun: {rows[0]['place']}"
    with report.phase("end the session") as phase:
        session.destroy()
        phase.result = _ended(session)
    return result


def _stream(report: Report, session: Session) -> str:
    began = time.perf_counter()
    arrivals, text = [], ""
    run = session.stream(FIRST_CELL)
    for chunk in run:
        arrivals.append(time.perf_counter() - began)
        report.say(textwrap.indent(chunk.data.rstrip("\n"), f"  │ {arrivals[-1] * 1000:5.0f} ms  "))
        text += chunk.data
    _expect(run.exit_code in (0, None) and "Europe" in text, f"exit code {run.exit_code}: {text[-300:]}")
    return f"{len(text.splitlines())} lines in {len(arrivals)} pieces, the first after {arrivals[0] * 1000:.0f} ms"


def _batch(report: Report, client: Client, session_ids: list[str]) -> None:
    with report.phase("run a batch session from its startup command") as phase:
        command = f"python3 -c '{PI_PROGRAM}'"
        session = client.sessions.create(
            "python", name="demo-batch", type="batch", startup_command=command, cpu=1, mem="256m", wait=False
        )
        session_ids.append(session.id)
        info = session.wait(timeout=120, on_progress=_teller(report))
        log = session.logs()
        report.say(textwrap.indent(log.rstrip(), "  │ "))
        _expect(info.result == "success", f"{info.status}: {info.message}; its log: {log[-300:]}")
        _expect(PI_LAST_DECIMALS in log, f"the decimals of pi are wrong: {log[-300:]}")
        phase.result = f"{info.status}, exit code {info.exit_code}: {info.message}"


def _gang(report: Report, client: Client, result: Path, session_ids: list[str]) -> None:
    with report.phase("run a gang of two that reach each other by name") as phase:
        serve = f"python3 - >/dev/null 2>&1 <<'END' &{SUB_SERVER}END\n"
        script = f'if [ "$BACKENDAI_CLUSTER_ROLE" = sub ]; then\n{serve}fi\n'
        session = client.sessions.create(
            "python",
            name="demo-gang",
            cluster_size=2,
            cpu=0.5,
            mem="256m",
            bootstrap_script=script,
            on_progress=_teller(report),
        )
        session_ids.append(session.id)
        with session:
            session.upload(result)
            outcome = session.run(GANG_CELL, timeout=60)
            report.say(textwrap.indent((outcome.stdout + outcome.stderr).rstrip(), "  │ "))
            with result.open(newline="") as file:
                numbers = [abs(float(row["off_min"])) for row in csv.DictReader(file)]
            mean = f"mean {sum(numbers) / len(numbers):.3f}"
            _expect(outcome.ok and mean in outcome.stdout, f"{mean} expected: {outcome.stdout}{outcome.stderr}")
        phase.result = outcome.stdout.strip()


def _check_clean(report: Report, trace: Trace, session_ids: list[str]) -> None:
    with contextlib.suppress(PhaseFailed), report.phase("look for anything left behind") as phase:
        shutil.rmtree(trace.folder / "data", ignore_errors=True)
        (trace.folder / "clocks.csv").unlink(missing_ok=True)
        deadline = time.monotonic() + _CLEAN_WITHIN_S
        while (left := leftovers(trace, session_ids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(trace.folder, ignore_errors=True)
        _expect(not left, "; ".join(left))
        phase.result = "no process, mount, container, network, control group or file"


def _teller(report: Report) -> Callable[[object], None]:
    def tell(info: object) -> None:
        status, why = getattr(info, "status", ""), getattr(info, "message", "") or getattr(info, "reason", "")
        report.say(f"  … {status}{f': {why}' if why else ''}")

    return tell


def _ended(session: Session) -> str:
    info = session.info()
    _expect(info.is_terminal, f"{session.name} is still {info.status}")
    return f"{info.status}: {info.message or info.reason}"


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise PhaseFailed(otherwise)


if __name__ == "__main__":
    sys.exit(main())
