"""The client: :class:`Client` for plain code, :class:`AsyncClient` for asyncio. Installs and imports light.

Errors are the classes of :mod:`backendai_ray.core.errors`.
"""

from backendai_ray.client._async_client import AsyncClient
from backendai_ray.client._config import ClientConfig, load_config
from backendai_ray.client._handle import AsyncSession
from backendai_ray.client._models import (
    DependencyNode,
    Event,
    Explanation,
    FileInfo,
    GroupInfo,
    InputRequest,
    KernelInfo,
    Move,
    NodeInfo,
    NodeRefusal,
    OutputChunk,
    PlacedKernel,
    Proposal,
    QuotaInfo,
    RunResult,
    RuntimeInfo,
    SchedulingEntry,
    SessionInfo,
    SessionPage,
    StartEstimate,
    StatusChange,
)
from backendai_ray.client._nodes import DeviceInfo, HoldingInfo, LinksInfo, NicInfo, NodeDetail, NumaNodeInfo
from backendai_ray.client._runs import AsyncRun, InputSource
from backendai_ray.client._sessions import AsyncSessions
from backendai_ray.client._sync import Client, Run, Session, Sessions, Terminal
from backendai_ray.client._terminal import AsyncTerminal
from backendai_ray.client._usage import DeviceUsage, KernelUsage, NodeUsage

__all__ = [
    "AsyncClient",
    "AsyncRun",
    "AsyncSession",
    "AsyncSessions",
    "AsyncTerminal",
    "Client",
    "ClientConfig",
    "DependencyNode",
    "DeviceInfo",
    "DeviceUsage",
    "Event",
    "Explanation",
    "FileInfo",
    "GroupInfo",
    "HoldingInfo",
    "InputRequest",
    "InputSource",
    "KernelInfo",
    "KernelUsage",
    "LinksInfo",
    "Move",
    "NicInfo",
    "NodeDetail",
    "NodeInfo",
    "NodeRefusal",
    "NodeUsage",
    "NumaNodeInfo",
    "OutputChunk",
    "PlacedKernel",
    "Proposal",
    "QuotaInfo",
    "Run",
    "RunResult",
    "RuntimeInfo",
    "SchedulingEntry",
    "Session",
    "SessionInfo",
    "SessionPage",
    "Sessions",
    "StartEstimate",
    "StatusChange",
    "Terminal",
    "load_config",
]
