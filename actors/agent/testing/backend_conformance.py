"""What every compute backend must do: inherit :class:`BackendConformance` in a test and give it a backend.

    class TestMine(BackendConformance):
        @pytest.fixture
        def make_backend(self, settings): ...     # returns a function that makes a fresh, closed backend

The suite uses real kernels: it needs pytest, pytest-asyncio in auto mode, and whatever the backend needs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent.backends.base import ComputeBackend, Ending, Launch, Life
from actors.agent.backends.environ import kernel_environ
from actors.agent.devices.base import Grant
from actors.agent.folders import kernel_folders
from actors.agent.runner_link import RunnerLink
from backendai_ray.config import Settings
from backendai_ray.core.devices import Allocation
from backendai_ray.core.errors import EngineUnavailable, ImageNotFound
from backendai_ray.core.execution import ExecMode, RunOutput, RunStatus
from backendai_ray.core.ids import AccessKey, DeviceId, KernelId, SessionId
from backendai_ray.core.sessions import KernelSpec, SessionType
from backendai_ray.core.slots import CPU, MEM

MIB = 2**20
TOKEN = "conformance"
MakeBackend = Callable[[], ComputeBackend]


class Lives:
    """Starts lives on one backend and takes them away again, whatever the test did."""

    def __init__(self, backend: ComputeBackend, settings: Settings, image: str) -> None:
        self.backend = backend
        self.settings = settings
        self.image = image
        self.launches: list[Launch] = []
        self.ended: list[Life] = []
        self._links: list[RunnerLink] = []

    def prepare(
        self,
        *,
        memory_bytes: int = 256 * MIB,
        cores: tuple[int, ...] = (),
        cpu_units: int = 0,
        session_id: str = "",
        hosts: tuple[str, ...] = ("main1",),
        host: str = "main1",
        pids_limit: int = 64,
        bootstrap: str = "",
        shmem_bytes: int = 32 * MIB,
    ) -> Launch:
        """Lay out a kernel's folders as the agent does, and return what starts it."""
        kernel_id = KernelId(str(uuid.uuid4()))
        spec = KernelSpec(
            kernel_id=kernel_id,
            session_id=SessionId(session_id or str(uuid.uuid4())),
            session_name="conformance",
            access_key=AccessKey("AKCONFORMANCE"),
            session_type=SessionType.INTERACTIVE,
            image=self.image,
            architecture="",
            role=host.rstrip("0123456789"),
            index=1,
            hostname=host,
            cluster_hosts=hosts,
            slots=Allocation.of([(CPU, DeviceId("0"), 1000)]).slots(),
            allocation=Allocation.of([(CPU, DeviceId("0"), 1000), (MEM, DeviceId("root"), memory_bytes)]),
            shmem_bytes=shmem_bytes,
            environ={"MINE": "ü $HOME"},
            bootstrap_script=bootstrap,
        )
        life = Life(kernel_id=kernel_id, attempt=1, epoch=0)
        folders = kernel_folders(self.settings.sessions_dir, life)
        uid = self.backend.kernel_uid(kernel_id)
        for folder in (folders.work, folders.run):
            folder.mkdir(parents=True)
        (folders.run / "token").write_text(TOKEN)
        (folders.run / "bootstrap.sh").write_text(bootstrap)
        for path in (folders.work, folders.run, folders.run / "token", folders.run / "bootstrap.sh"):
            os.chown(path, uid, uid)
        launch = Launch(
            life=life,
            spec=spec,
            image=self.backend.prepare_image(self.image, ""),
            folders=folders,
            grant=Grant(cores=cores, cpu_units=cpu_units, memory_bytes=memory_bytes),
            environ=kernel_environ(spec, Grant()),
            pids_limit=pids_limit,
            uid=uid,
            output_buffer_bytes=4 * MIB,
        )
        self.launches.append(launch)
        return launch

    def start(self, launch: Launch | None = None) -> Launch:
        """Start a life (a plain one, if none is given)."""
        launch = launch or self.prepare()
        assert self.backend.launch(launch)
        return launch

    async def link(self, launch: Launch) -> RunnerLink:
        """Return a connection to the life's runner."""
        handle = os.open(launch.folders.run, os.O_RDONLY | os.O_DIRECTORY)
        try:  # the path of a test's folder is often too long for a socket
            link = RunnerLink(Path(f"/proc/self/fd/{handle}/s"), token=TOKEN)
            await link.connect(30)
        finally:
            os.close(handle)
        self._links.append(link)
        return link

    async def run(self, launch: Launch, code: str) -> RunOutput:
        """Run Python code in a life to its end."""
        link = await self.link(launch)
        run_id = uuid.uuid4().hex
        output = await link.run(run_id, ExecMode.QUERY, code, wait_s=20)
        console = output.console
        while output.status is RunStatus.CONTINUED:
            output = await link.poll(run_id, after_seq=output.seq, wait_s=20)
            console += output.console
        link.close()
        return RunOutput(run_id=run_id, status=output.status, console=console, exit_code=output.exit_code)

    async def say(self, launch: Launch, code: str) -> str:
        """Run Python code and return all that it printed."""
        output = await self.run(launch, code)
        return "".join(str(text) for _, text in output.console).strip()

    def end(self, launch: Launch, *, grace_s: float = 0.0, gang: bool = False) -> Ending:
        """Stop and remove a life."""
        ending = self.backend.stop(launch.life, grace_s)
        self.backend.remove(launch.life, launch.spec.session_id if gang else None)
        return ending

    def end_all(self) -> None:
        for link in self._links:
            link.close()
        for launch in self.launches:
            self.end(launch, gang=len(launch.spec.cluster_hosts) > 1)


async def until(condition: Callable[[], object], *, timeout_s: float = 20.0) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it never did.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        await asyncio.sleep(0.02)


class BackendConformance:
    """Inherit it, and define ``settings`` (a fixture) and ``make_backend`` (a fixture)."""

    image = "python"
    shares_network_with_host = False
    """Whether kernels see the machine's network (then names must be distinct addresses of it)."""

    @pytest.fixture
    def backend(self, make_backend: MakeBackend) -> Iterator[ComputeBackend]:
        backend = make_backend()
        backend.open()
        yield backend
        backend.close()

    @pytest.fixture
    def lives(self, backend: ComputeBackend, settings: Settings) -> Iterator[Lives]:
        lives = Lives(backend, settings, self.image)
        yield lives
        lives.end_all()
        assert list(backend.list_own()) == []
        for launch in lives.launches:
            shutil.rmtree(launch.folders.root)

    # ── the node ───────────────────────────────────────────────────────────────────────────────────────────────────

    def test_says_what_it_is(self, backend: ComputeBackend) -> None:
        info = backend.probe()
        assert info.architecture == os.uname().machine
        assert info.labels["isolation"] in ("full", "limits-only")
        assert (info.labels["isolation"] == "full") == ("isolation-note" not in info.labels)
        assert backend.health() == ""

    def test_images(self, backend: ComputeBackend) -> None:
        image = backend.prepare_image(self.image, os.uname().machine)
        assert image.python
        assert backend.is_prepared(self.image)
        assert self.image in backend.images()
        assert backend.prepare_image(self.image, "").id == image.id

    def test_unknown_image(self, backend: ComputeBackend) -> None:
        # There is none; or nobody can say, where it would come from a registry that does not answer.
        with pytest.raises((ImageNotFound, EngineUnavailable), match="no-such-image"):
            backend.prepare_image("127.0.0.1:9/no-such-image:1", "")

    def test_another_architecture(self, backend: ComputeBackend) -> None:
        with pytest.raises(ImageNotFound, match="sparc64"):
            backend.prepare_image(self.image, "sparc64")

    # ── a life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_runs_code_as_a_plain_user_in_the_sessions_folder(self, lives: Lives) -> None:
        launch = lives.start()
        (launch.folders.work / "in.txt").write_text("from outside")
        code = """
import os, socket
open("out.txt", "w").write(open("in.txt").read() + ", and back")
print(os.getcwd(), os.getuid(), socket.gethostname(), os.environ["HOME"], os.environ["MINE"])
print(os.environ["BACKENDAI_KERNEL_ID"], os.environ["BACKENDAI_CLUSTER_HOSTS"])
"""
        said = (await lives.say(launch, code)).split("\n")
        assert said[0] == f"/home/work {launch.uid} main1 /home/work ü $HOME"
        assert said[1] == f"{launch.life.kernel_id} main1"
        assert (launch.folders.work / "out.txt").read_text() == "from outside, and back"
        assert os.geteuid() != 0 or launch.uid != 0

    async def test_sees_nobody_elses_files_and_processes(self, lives: Lives, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("x")
        other, launch = lives.start(), lives.start()
        code = f"""
import os
print(os.path.exists({str(secret)!r}), os.path.exists({str(other.folders.root)!r}))
print(len([p for p in os.listdir("/proc") if p.isdigit()]) < 10)
for path in ("/usr/x", "/etc/x", "/x"):
    try:
        open(path, "w"); print("wrote", path)
    except OSError: pass
try:
    print(os.listdir("/root"))
except OSError: pass
"""
        said = await lives.say(launch, code)
        assert said.split("\n")[:2] == ["False False", "True"]
        assert "wrote" not in said

    async def test_bootstrap_script_comes_first(self, lives: Lives) -> None:
        launch = lives.start(lives.prepare(bootstrap="pwd > where.txt; false"))
        assert await lives.say(launch, "print(open('where.txt').read())") == "/home/work"
        assert b"exit code 1" in lives.backend.log(launch.life, 4096)

    async def test_the_same_life_is_made_once(self, lives: Lives, make_backend: MakeBackend) -> None:
        launch = lives.start(lives.prepare(bootstrap="echo x >> starts.txt"))
        await lives.say(launch, "1")
        assert lives.backend.launch(launch)
        again = make_backend()  # an agent that was killed and does not know whether it had started it
        again.open()
        again.launch(launch)
        again.close()
        assert await lives.say(launch, "print(open('starts.txt').read().split())") == "['x']"

    async def test_is_found_again_by_another_backend_object(self, lives: Lives, make_backend: MakeBackend) -> None:
        launch = lives.start()
        await lives.say(launch, "kept = 41")
        again = make_backend()
        again.open()
        try:
            (found,) = again.list_own()
            assert (found.life, found.is_running, found.session_id) == (launch.life, True, launch.spec.session_id)
            assert again.is_running(launch.life)
            assert await lives.say(launch, "print(kept + 1)") == "42"
            assert again.stop(launch.life, 0.0).exit_code not in (0, None)
        finally:
            again.close()

    # ── limits ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_runs_on_its_cores(self, lives: Lives) -> None:
        core = max(os.sched_getaffinity(0))
        launch = lives.start(lives.prepare(cores=(core,)))
        assert await lives.say(launch, "import os; print(os.sched_getaffinity(0))") == f"{{{core}}}"

    async def test_fraction_of_a_core(self, lives: Lives) -> None:
        launch = lives.start(lives.prepare(cores=(0,), cpu_units=200))
        code = """
import time
wall, cpu = time.monotonic(), time.process_time()
while time.monotonic() - wall < 1.5: pass
print((time.process_time() - cpu) / (time.monotonic() - wall))
"""
        assert float(await lives.say(launch, code)) < 0.4

    async def test_eating_memory_ends_the_kernel_and_is_told_apart(self, lives: Lives) -> None:
        launch = lives.start(lives.prepare(memory_bytes=128 * MIB))
        link = await lives.link(launch)
        code = "x = []\nwhile True: x.append(bytearray(b'1') * 2**20)"
        asyncio_run = asyncio.ensure_future(link.run("eat", ExecMode.QUERY, code, wait_s=30))
        await until(lambda: not lives.backend.is_running(launch.life), timeout_s=40)
        with pytest.raises(Exception, match="ended"):
            await asyncio_run
        ending = lives.end(launch)
        assert ending.oom_killed
        assert ending.exit_code == 137

    async def test_memory_kill_of_a_child_is_counted(self, lives: Lives) -> None:
        launch = lives.start(lives.prepare(memory_bytes=128 * MIB))
        code = """
import subprocess, sys
# The child offers itself to the kernel's killer, so that the parent stays.
eat = "open('/proc/self/oom_score_adj', 'w').write('1000')\\nx = []\\nwhile True: x.append(bytearray(b'1') * 2**20)"
print(subprocess.run([sys.executable, "-c", eat]).returncode)
"""
        assert lives.backend.oom_kills(launch.life) == 0
        assert await lives.say(launch, code) == "-9"
        await until(lambda: lives.backend.oom_kills(launch.life) == 1)
        assert not lives.end(launch, grace_s=5).oom_killed

    async def test_forking_without_end_is_contained(self, lives: Lives) -> None:
        launch = lives.start(lives.prepare(pids_limit=40))
        code = """
import os, time
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            time.sleep(600)
        count += 1
except OSError as error:
    print(type(error).__name__)
print(count < 40)
"""
        assert await lives.say(launch, code) == "BlockingIOError\nTrue"
        before = time.monotonic()
        lives.end(launch)
        assert time.monotonic() - before < 15

    async def test_limits_of_each_process_and_local_memory(self, lives: Lives) -> None:
        plain = lives.prepare(cores=(0,))
        grant = replace(plain.grant, memory_nodes=(0,))
        launch = lives.start(replace(plain, grant=grant, ulimits={"nofile": (1000, 2000), "core": (0, 0)}))
        code = """
import resource
print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE))
print(dict(line.split(":", 1) for line in open("/proc/self/status"))["Mems_allowed_list"].strip())
"""
        assert await lives.say(launch, code) == "(1000, 2000) (0, 0)\n0"

    async def test_what_it_uses_is_measured(self, lives: Lives) -> None:
        launch = lives.start()
        before = dict(lives.backend.stats(launch.life))
        await lives.say(launch, "block = b'x' * (48 * 2**20)\nsum(range(10**6))")
        after = dict(lives.backend.stats(launch.life))
        assert set(before) <= set(after) | {"net_rx_bytes", "net_tx_bytes"}
        assert all(value >= 0 for value in after.values())
        if "memory_bytes" in after:
            assert after["memory_bytes"] > before["memory_bytes"] + 40 * 2**20
            assert after["pids"] >= 1
        if "cpu_ns" in after:
            assert after["cpu_ns"] > before["cpu_ns"]
        lives.backend.stop(launch.life, 0.0)
        assert lives.backend.stats(launch.life) == {}

    async def test_shared_memory(self, lives: Lives) -> None:
        launch = lives.start(lives.prepare(shmem_bytes=16 * MIB))
        code = "import shutil; print(shutil.disk_usage('/dev/shm').total)"
        assert int(await lives.say(launch, code)) == 16 * MIB

    # ── ends ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_its_own_end_is_noticed_with_exit_code_and_log(self, lives: Lives) -> None:
        lives.backend.watch(lives.ended.append)
        launch = lives.start()
        link = await lives.link(launch)
        code = "import os; os.write(int(os.environ.get('X', '2')), b''); os._exit(7)"
        with pytest.raises(Exception, match="ended"):
            await link.run("end", ExecMode.QUERY, code, wait_s=20)
        await until(lambda: launch.life in lives.ended)
        assert not lives.backend.is_running(launch.life)
        assert lives.end(launch).exit_code == 7

    async def test_polite_stop(self, lives: Lives) -> None:
        launch = lives.start()
        await lives.say(launch, "import atexit; atexit.register(lambda: open('bye.txt', 'w').write('bye'))")
        link = await lives.link(launch)
        await link.shutdown()
        lives.end(launch, grace_s=10)
        assert (launch.folders.work / "bye.txt").read_text() == "bye"

    async def test_hard_stop_takes_everything_along(self, lives: Lives) -> None:
        launch = lives.start()
        code = """
import os, signal, subprocess, sys
stubborn = "import signal, time\\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\\n"
stubborn += "while True:\\n  open('alive', 'a').write('x'); time.sleep(0.02)"
subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
"""
        await lives.say(launch, code)
        alive = launch.folders.work / "alive"
        await until(alive.exists)
        lives.end(launch)
        size = alive.stat().st_size
        await asyncio.sleep(0.2)  # ten times its interval: it would have written again
        assert alive.stat().st_size == size

    async def test_stop_and_remove_are_repeatable(self, lives: Lives) -> None:
        launch = lives.start()
        for _ in range(2):
            lives.backend.stop(launch.life, 0.0)
        for _ in range(2):
            lives.backend.remove(launch.life)
        assert lives.backend.stop(launch.life, 1.0).exit_code is None
        assert list(lives.backend.list_own()) == []

    def test_unknown_life_is_no_error(self, backend: ComputeBackend) -> None:
        life = Life(kernel_id=KernelId(str(uuid.uuid4())), attempt=1, epoch=0)
        assert not backend.is_running(life)
        assert backend.log(life, 100) == b""
        assert backend.stats(life) == {}
        assert backend.oom_kills(life) == 0
        assert backend.stop(life, 0.0).exit_code is None
        backend.remove(life)

    # ── gangs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_members_of_a_gang_reach_each_other_by_name(self, lives: Lives) -> None:
        session_id, hosts = str(uuid.uuid4()), ("main1", "sub1")
        main, sub = (lives.start(lives.prepare(session_id=session_id, hosts=hosts, host=host)) for host in hosts)
        serve = """
import socket, threading
server = socket.create_server((socket.gethostname(), 40123)); server.settimeout(20)
def answer():
    peer, _ = server.accept(); peer.sendall(b"hello from " + socket.gethostname().encode()); peer.close()
threading.Thread(target=answer).start()
"""
        ask = """
import socket
print(socket.create_connection((HOST, 40123), timeout=20).recv(99).decode())
"""
        for server, client, host in ((main, sub, "main1"), (sub, main, "sub1")):
            await lives.say(server, serve)
            assert await lives.say(client, f"HOST={host!r}\n{ask}") == f"hello from {host}"
