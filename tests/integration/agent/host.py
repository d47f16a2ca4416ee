"""A process that hosts one agent, so that tests can kill it: pickled calls come in by stdin, answers go out."""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
import sys
from collections.abc import Sequence
from typing import Any

from actors.agent.agent import Agent
from backendai_ray.config import Settings
from backendai_ray.core.ids import AgentId
from backendai_ray.core.reports import KernelFact


class _Out:
    """The Manager's part, told to the test through the pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: object) -> None:
        data = pickle.dumps(message)
        data = struct.pack(">I", len(data)) + data
        while data:
            data = data[os.write(self._descriptor, data) :]

    async def kernel_facts(self, agent_id: AgentId, incarnation: str, facts: Sequence[KernelFact]) -> None:
        self.send(("facts", list(facts)))

    async def node_report(
        self, agent_id: AgentId, incarnation: str, version: int, report: object, *, ready: bool
    ) -> None:
        self.send(("report", (incarnation, version, ready)))

    async def heartbeat(self, agent_id: AgentId, incarnation: str) -> None:
        self.send(("heartbeat", incarnation))


async def serve() -> None:
    settings = Settings.model_validate_json(sys.argv[2])
    answers = os.dup(1)
    os.dup2(2, 1)  # what logs to standard output must not mix with the answers
    out = _Out(answers)
    agent = Agent(AgentId(sys.argv[1]), settings, out)
    await agent.start()
    out.send(("started", os.getpid()))
    reader = asyncio.StreamReader(limit=2**28)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = set()
    while True:
        try:
            (size,) = struct.unpack(">I", await reader.readexactly(4))
            number, method, args, kwargs = pickle.loads(await reader.readexactly(size))
        except asyncio.IncompleteReadError:
            await agent.close()
            return
        task = asyncio.create_task(_answer(agent, out, number, method, args, kwargs))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _answer(agent: Agent, out: _Out, number: int, method: str, args: Any, kwargs: Any) -> None:
    try:
        if method == "open_files":
            out.send(("answer", (number, True, len(os.listdir("/proc/self/fd")))))
            return
        out.send(("answer", (number, True, await getattr(agent, method)(*args, **kwargs))))
    except Exception as error:  # noqa: BLE001 - the test judges it
        out.send(("answer", (number, False, error)))


if __name__ == "__main__":
    asyncio.run(serve())
