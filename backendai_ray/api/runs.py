"""Running code through an agent: the calls, and what a client has received of a run's output."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.contracts import ExecuteRequest
from backendai_ray.core.execution import ExecMode, RunOutput
from backendai_ray.core.ids import AccessKey

if TYPE_CHECKING:
    from backendai_ray.api.reach import Reach

POLL_S = 2.0
"""How long a poll waits for output, as the official server does."""
_MOST_RUNS = 20_000
_BEGINNINGS = frozenset({ExecMode.QUERY, ExecMode.BATCH})


class Acknowledgements:
    """Up to where each run's output was answered to its client; who polls again has received that.

    Soft state: with it, output that an agent handed out but that never reached this front door (the call broke) is
    asked for again. Without it (after a restart) what was handed out counts as received, unless the client says.
    """

    def __init__(self) -> None:
        self._answered: OrderedDict[tuple[str, str], int] = OrderedDict()

    def answered(self, kernel_id: str, run_id: str) -> int | None:
        """Return the number of the last record answered; ``None`` if not known."""
        return self._answered.get((kernel_id, run_id))

    def note(self, kernel_id: str, run_id: str, seq: int) -> None:
        """Note what is being answered."""
        self._answered[kernel_id, run_id] = seq
        while len(self._answered) > _MOST_RUNS:
            self._answered.popitem(last=False)


async def poll_run(
    reach: Reach,
    acknowledgements: Acknowledgements,
    *,
    access_key: AccessKey,
    name: str,
    run_id: str,
    mode: ExecMode,
    code: str,
    options: Mapping[str, Any],
    ack: int | None,
) -> RunOutput:
    """Start, feed or continue a run and return its news after at most :data:`POLL_S`.

    Args:
        reach: The way to the session.
        acknowledgements: What this front door has answered so far.
        access_key: The session's owner.
        name: The session's name or id.
        run_id: Names the run; a known one goes on and never runs twice.
        mode: What to do.
        code: Code, or a line of input.
        options: For the runner.
        ack: What the client says it has received; ``None``: what was answered before.
    """

    async def call(agent: Any, route: Any) -> RunOutput:
        after_seq = ack
        if after_seq is None:
            after_seq = acknowledgements.answered(route.kernel_id, run_id)
        if after_seq is None and mode in _BEGINNINGS:
            after_seq = 0  # whoever begins a run has received nothing of it
        request = ExecuteRequest(
            route=route, run_id=run_id, mode=mode, code=code, options=options, after_seq=after_seq, wait_s=POLL_S
        )
        output: RunOutput = await agent.execute(request)
        acknowledgements.note(route.kernel_id, run_id, output.seq)
        return output

    return await reach.agent(access_key, name, call)


def run_answer(output: RunOutput) -> dict[str, Any]:
    """Return a poll's news under the official names."""
    return {
        "runId": output.run_id,
        "status": output.status,
        "exitCode": output.exit_code,
        "options": output.options,
        "console": output.console,
        "files": [],
        "seq": output.seq,
    }
