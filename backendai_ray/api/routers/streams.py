"""Running code over a WebSocket, in the official client's frames."""

from __future__ import annotations

import asyncio
from secrets import token_hex
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from backendai_ray.api.answers import encode
from backendai_ray.api.context import Context, ContextDep
from backendai_ray.api.requests import Caller, caller_of
from backendai_ray.api.routers.names import SessionName
from backendai_ray.api.runs import poll_run, run_answer
from backendai_ray.api.schemas.execute import Execute, ExecuteOptions
from backendai_ray.core.errors import BackendError, BadRequest, InternalError, InvalidParameter
from backendai_ray.core.execution import ExecMode, RunOutput, RunStatus
from backendai_ray.core.ids import parse_run_id

log = structlog.get_logger()
router = APIRouter()

_FIRST_FRAME_S = 30.0
_ENDED = frozenset({RunStatus.FINISHED, RunStatus.EXEC_TIMEOUT})


@router.websocket("/stream/session/{name}/execute")
async def stream_execute(websocket: WebSocket, context: ContextDep, name: SessionName) -> None:
    """Run what the first frame says (`mode`, `code`, `options`) and send results until it is finished.

    While a result is `waiting-input`, the next text frame is the line of input. A client that hangs up interrupts
    its run, unless it named the run itself (`runId`): then the run goes on, and can be continued by that name.
    """
    caller = caller_of(websocket, websocket.query_params.get("owner_access_key"))  # type: ignore[arg-type]
    await context.reach.route(caller.access_key, name)
    await websocket.accept()
    frames = _Frames(websocket)
    try:
        await _Run(context, caller, name, frames).serve()
        await websocket.close()
    except WebSocketDisconnect:
        pass
    except BackendError as exc:
        await _send_error(websocket, exc)
    except Exception:
        log.exception("stream.unexpected_error", session=name)
        await _send_error(websocket, InternalError())
    finally:
        await frames.stop()


class _Frames:
    """The client's text frames, read ahead so that its going away is noticed at once."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._texts: asyncio.Queue[str | None] = asyncio.Queue(maxsize=64)
        self.gone = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                await self._texts.put(await self._websocket.receive_text())
        except (WebSocketDisconnect, RuntimeError, KeyError):  # gone, or a frame that is no text
            self.gone.set()
            await self._texts.put(None)

    async def next(self) -> str:
        """Return the next text.

        Raises:
            WebSocketDisconnect: the client has gone.
        """
        text = await self._texts.get()
        if text is None:
            raise WebSocketDisconnect()
        return text

    async def send(self, data: object) -> None:
        await self._websocket.send_text(encode(data).decode())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class _Run:
    """One run over one WebSocket."""

    def __init__(self, context: Context, caller: Caller, name: str, frames: _Frames) -> None:
        self._context = context
        self._caller = caller
        self._name = name
        self._frames = frames
        self._run_id = token_hex(8)
        self._is_named = False

    async def serve(self) -> None:
        """Carry the run to its end."""
        mode, code, options = self._understood(await self._first_frame())
        told = options.for_runner() if mode is ExecMode.BATCH else {}
        ack = options.ack
        while True:
            output = await self._poll_or_leave(mode, code, told, ack)
            await self._frames.send(run_answer(output))
            if output.status in _ENDED:
                return
            mode, code, told, ack = ExecMode.CONTINUE, "", {}, None
            if output.status is RunStatus.WAITING_INPUT:
                mode, code = ExecMode.INPUT, await self._input()

    async def _first_frame(self) -> str:
        try:
            async with asyncio.timeout(_FIRST_FRAME_S):
                return await self._frames.next()
        except TimeoutError:
            raise BadRequest(f"no code came within {_FIRST_FRAME_S:.0f} s") from None

    def _understood(self, text: str) -> tuple[ExecMode, str, ExecuteOptions]:
        try:
            body = Execute.model_validate(msgspec.json.decode(text.encode()))
        except (msgspec.DecodeError, RecursionError) as exc:
            raise BadRequest(f"the first frame is no JSON: {exc}") from None
        except ValidationError as exc:
            first = exc.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InvalidParameter(f"{field}: {first['msg']}", field=field) from None
        mode = ExecMode(body.mode if body.mode and body.mode != "user-input" else "query")
        if mode not in (ExecMode.QUERY, ExecMode.BATCH, ExecMode.CONTINUE):
            raise InvalidParameter("mode: a stream begins with 'query', 'batch' or 'continue'", field="mode")
        if body.run_id is not None:
            self._run_id, self._is_named = parse_run_id(body.run_id), True
        elif mode is ExecMode.CONTINUE:
            raise InvalidParameter("runId: mode 'continue' needs the run's id", field="runId")
        return mode, body.code or "", body.options or ExecuteOptions()

    async def _poll_or_leave(self, mode: ExecMode, code: str, options: dict[str, Any], ack: int | None) -> RunOutput:
        """Poll; raise as soon as the client is gone."""
        poll = asyncio.create_task(
            poll_run(
                self._context.reach,
                self._context.acknowledgements,
                access_key=self._caller.access_key,
                name=self._name,
                run_id=self._run_id,
                mode=mode,
                code=code,
                options=options,
                ack=ack,
            )
        )
        gone = asyncio.create_task(self._frames.gone.wait())
        try:
            await asyncio.wait({poll, gone}, return_when=asyncio.FIRST_COMPLETED)
            if poll.done():
                return poll.result()
            await self._leave()
            raise WebSocketDisconnect()
        finally:
            poll.cancel()
            gone.cancel()
            await asyncio.gather(poll, gone, return_exceptions=True)

    async def _input(self) -> str:
        try:
            return await self._frames.next()
        except WebSocketDisconnect:
            await self._leave()
            raise

    async def _leave(self) -> None:
        if not self._is_named:
            await self._context.reach.agent(
                self._caller.access_key, self._name, lambda agent, route: agent.interrupt(route)
            )


async def _send_error(websocket: WebSocket, error: BackendError) -> None:
    """Tell of an error so that the official client, which knows no errors here, prints it as output."""
    message = InternalError.title if type(error) is InternalError else error.message
    frame = {
        "status": "error",
        "code": error.code,
        "msg": message,
        "details": {} if type(error) is InternalError else error.details,
        "console": [["stderr", f"{message}\n"]],
        "options": {},
        "exitCode": None,
    }
    try:
        await websocket.send_text(msgspec.json.encode(frame, enc_hook=str).decode())
        await websocket.close(1011, error.code)
    except (WebSocketDisconnect, RuntimeError):
        pass  # it is gone already
