"""Asking agents what is in use: bounded, in parallel, and never waited for longer than a person would."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from backendai_ray.api.services import Services
from backendai_ray.core.errors import BackendError
from backendai_ray.core.ids import AgentId, KernelId
from backendai_ray.core.measurements import KernelUsage, NodeUsage
from backendai_ray.core.sessions import Session, Status

PATIENCE_S = 3.0
AT_ONCE = 64


async def usage_of_nodes(
    services: Services, wanted: Mapping[AgentId, Sequence[KernelId] | None], *, patience_s: float = PATIENCE_S
) -> dict[AgentId, NodeUsage]:
    """Return what nodes measured last; one that does not answer in time is left out.

    Args:
        services: The peers.
        wanted: The nodes, with the kernels to tell of; ``None``: all of them.
        patience_s: How long to wait for each.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(agent_id: AgentId, kernels: Sequence[KernelId] | None) -> NodeUsage | None:
        try:
            async with gate, asyncio.timeout(patience_s):
                return await services.agent(agent_id).usage(kernels)
        except (BackendError, TimeoutError):
            return None

    answers = await asyncio.gather(*(ask(agent_id, kernels) for agent_id, kernels in wanted.items()))
    return {agent_id: answer for agent_id, answer in zip(wanted, answers, strict=True) if answer is not None}


async def usage_of_session(services: Services, session: Session) -> list[tuple[AgentId, KernelUsage]]:
    """Return what a session's running kernels use, the main one first."""
    running = [(k.agent_id, k.id) for k in session.kernels if k.agent_id is not None and k.status is Status.RUNNING]
    wanted = {agent_id: [kernel for node, kernel in running if node == agent_id] for agent_id, _ in running}
    told = await usage_of_nodes(services, wanted)
    by_kernel = {usage.kernel_id: (agent_id, usage) for agent_id, node in told.items() for usage in node.kernels}
    return [by_kernel[kernel] for _, kernel in running if kernel in by_kernel]


def reachable(nodes: Iterable[tuple[AgentId, bool]]) -> dict[AgentId, None]:
    """Return the nodes to ask, of ``(id, is there)``."""
    return {agent_id: None for agent_id, is_there in nodes if is_there}
