"""Running code: one loop that starts a run, reads its output, answers its questions and survives lost connections.

A run has an id of ours, and every answer says up to which record it goes. The next request acknowledges exactly what
has arrived here; so whatever breaks in between, nothing runs twice and no output is lost or doubled.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from backendai_ray.client._models import InputRequest, OutputChunk, RunResult
from backendai_ray.core.errors import BadRequest, RequestLost
from backendai_ray.core.execution import ExecMode, OutputType, RunStatus

if TYPE_CHECKING:
    from backendai_ray.client._transport import Transport

AnswerInput = Callable[[InputRequest], str | Awaitable[str]]
InputSource = str | AnswerInput | None
"""What a program reads: lines of a text, or a function that is asked for each line; ``None``: it may not ask."""

_ENDED = (RunStatus.FINISHED, RunStatus.EXEC_TIMEOUT)
_PHASES: Mapping[str, str] = {RunStatus.CLEAN_FINISHED: "clean", RunStatus.BUILD_FINISHED: "build"}


class AsyncRun:
    """One execution in a session; iterate over it for its output as it comes, in order.

    Leaving the loop early does not end the program; :meth:`interrupt` does.
    """

    def __init__(
        self,
        transport: Transport,
        session_path: str,
        *,
        mode: ExecMode,
        code: str,
        options: Mapping[str, object],
        answer: InputSource = None,
    ) -> None:
        self.run_id = uuid4().hex
        self.status = RunStatus.CONTINUED
        self.exit_code: int | None = None
        self.phases: dict[str, int | None] = {}
        self._transport = transport
        self._path = session_path
        self._first = (mode, code, options)
        self._answer = _line_by_line(answer) if isinstance(answer, str) else answer
        self._acknowledged = 0
        self._line = ""
        self._output = self._read()

    @property
    def is_finished(self) -> bool:
        """Whether the program has ended."""
        return self.status in _ENDED

    def __aiter__(self) -> AsyncIterator[OutputChunk]:
        return self._output

    async def result(self) -> RunResult:
        """Read the rest of the output and return how it went."""
        console = [chunk async for chunk in self._output]
        return RunResult(self.run_id, self.status, self.exit_code, tuple(console), dict(self.phases))

    async def interrupt(self) -> None:
        """Interrupt the program, as Ctrl-C does."""
        await self._transport.json("POST", f"{self._path}/interrupt")

    async def _read(self) -> AsyncIterator[OutputChunk]:
        mode, code, options = self._first
        answer = await self._ask(mode, code, options)
        while True:
            for chunk in _chunks(answer):
                self._remember_line(chunk)
                yield chunk
            self._take_in(answer)
            if self.is_finished:
                return
            if self.status == RunStatus.WAITING_INPUT:
                answer = await self._send_input(await self._obtain_input(answer))
            else:
                answer = await self._ask(ExecMode.CONTINUE)

    async def _ask(
        self,
        mode: ExecMode,
        code: str = "",
        options: Mapping[str, object] | None = None,
        *,
        repeat_if_lost: bool = True,
    ) -> dict[str, Any]:
        body = {
            "mode": str(mode),
            "code": code,
            "runId": self.run_id,
            "options": {**(options or {}), "after_seq": self._acknowledged},
        }
        answer = await self._transport.json("POST", self._path, body=body, repeat_if_lost=repeat_if_lost)
        result: dict[str, Any] = answer["result"]
        return result

    async def _send_input(self, text: str) -> dict[str, Any]:
        """Send a line of input, but never twice: if it is not known whether it arrived, look before repeating."""
        while True:
            try:
                return await self._ask(ExecMode.INPUT, text, repeat_if_lost=False)
            except RequestLost:
                answer = await self._ask(ExecMode.CONTINUE)
                if answer.get("status") != RunStatus.WAITING_INPUT or answer.get("console"):
                    return answer

    async def _obtain_input(self, answer: Mapping[str, Any]) -> str:
        options = answer.get("options") or {}
        request = InputRequest(is_password=bool(options.get("is_password")), prompt=self._line)
        self._line = ""
        try:
            if self._answer is None:
                raise BadRequest("the program waits for input; pass input= (a text or a function)", run_id=self.run_id)
            # A plain function may wait for a person: never in the event loop.
            given = await asyncio.to_thread(self._answer, request)
            return str(await given if inspect.isawaitable(given) else given)
        except Exception:
            await self.interrupt()  # nobody will ever answer
            raise

    def _take_in(self, answer: Mapping[str, Any]) -> None:
        self._acknowledged = int(answer.get("seq") or self._acknowledged)
        self.status = RunStatus(answer.get("status", RunStatus.CONTINUED))
        if self.status in _PHASES:
            self.phases[_PHASES[self.status]] = answer.get("exitCode")
        elif self.is_finished:
            self.exit_code = answer.get("exitCode")

    def _remember_line(self, chunk: OutputChunk) -> None:
        if chunk.type in (OutputType.STDOUT, OutputType.STDERR):
            self._line = (self._line + chunk.data).rpartition("\n")[2][-1000:]


def _chunks(answer: Mapping[str, Any]) -> Iterator[OutputChunk]:
    for kind, data in answer.get("console") or ():
        if isinstance(data, str):
            yield OutputChunk(OutputType(kind), data)
        else:
            mime, content = data
            yield OutputChunk(OutputType(kind), content, mime)


def _line_by_line(text: str) -> AnswerInput:
    lines = iter(text.splitlines())

    def next_line(_: InputRequest) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise BadRequest("the program asks for more lines of input than were given") from None

    return next_line
