"""The body of a create call: every field of the official API, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

_MAX_ENVIRON = 500


def _either(*names: str) -> Any:
    return AliasChoices(*names)


class ResourceOpts(BaseModel):
    """Options beside the amounts."""

    model_config = ConfigDict(extra="forbid")

    shmem: str | int | None = Field(None, description="Shared memory, such as `64m`; part of `mem`.")
    allow_fractional_resource_fragmentation: bool | str | None = Field(
        None, description="Understood for the official client; fractions are packed either way."
    )


class SessionConfig(BaseModel):
    """What the session's containers get."""

    model_config = ConfigDict(extra="forbid")

    resources: dict[str, Any] | None = Field(
        None, description="Amounts by slot for each container: `cpu`, `mem` (`512m`, `4g`), …; 1 core and 1g if absent."
    )
    resource_opts: ResourceOpts | None = Field(None, validation_alias=_either("resource_opts", "resourceOpts"))
    environ: dict[str, str | int | float | bool | None] | None = Field(
        None, max_length=_MAX_ENVIRON, description="Environment variables."
    )
    scaling_group: str | None = Field(
        None,
        max_length=64,
        validation_alias=_either("scalingGroup", "scaling_group"),
        description="The resource group; `default` if absent.",
    )
    preopen_ports: list[int] | None = Field(
        None, max_length=32, validation_alias=_either("preopen_ports", "preopenPorts"), description="Container ports."
    )
    agent_list: list[str] | None = Field(
        None,
        max_length=1024,
        validation_alias=_either("agentList", "agent_list"),
        description="Only these nodes; for administrators.",
    )
    mounts: list[str] | None = Field(None, description="Folders; must be empty for now.")
    mount_map: dict[str, str] | None = Field(
        None, validation_alias=_either("mount_map", "mountMap"), description="Folders' places; must be empty for now."
    )


class CreateSession(BaseModel):
    """A new session."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(
        min_length=1, max_length=512, validation_alias=_either("image", "lang"), description="`python`, or a full name."
    )
    name: str | None = Field(
        None,
        validation_alias=_either("name", "clientSessionToken"),
        description="1 to 64 characters; made up if absent.",
    )
    type: Literal["interactive", "batch", "inference", "system"] = Field(
        "interactive", validation_alias=_either("type", "sessionType")
    )
    config: SessionConfig | None = Field(None)
    cluster_size: Annotated[int, Field(strict=True)] = Field(
        1, validation_alias=_either("clusterSize", "cluster_size"), description="Containers in the session."
    )
    cluster_mode: Literal["single-node", "multi-node"] = Field(
        "single-node", validation_alias=_either("clusterMode", "cluster_mode")
    )
    enqueue_only: bool = Field(
        False, validation_alias=_either("enqueueOnly", "enqueue_only"), description="Do not wait for RUNNING."
    )
    max_wait_s: float = Field(
        0,
        ge=0,
        le=86400,
        validation_alias=_either("maxWaitSeconds", "max_wait_seconds"),
        description="How long to wait for RUNNING; 0: the server's default. Then `status` is TIMEOUT.",
    )
    reuse_if_exists: bool = Field(
        True,
        validation_alias=_either("reuseIfExists", "reuse_if_exists"),
        description="Answer with a live session of that name and image instead of an error.",
    )
    startup_command: str | None = Field(
        None, max_length=65536, validation_alias=_either("startupCommand", "startup_command")
    )
    bootstrap_script: str | None = Field(
        None, max_length=65536, validation_alias=_either("bootstrap_script", "bootstrapScript")
    )
    runtime: str | None = Field(
        None,
        max_length=64,
        description="What runs its cells: `python`, `shell`, or a Jupyter kernel of the image; the image's if absent.",
    )
    batch_timeout: str | int | float | None = Field(
        None,
        validation_alias=_either("batch_timeout", "batchTimeout"),
        description="Longest run of a batch session: seconds, or `30m`, `2h`, `1d`.",
    )
    starts_at: str | None = Field(
        None,
        max_length=64,
        validation_alias=_either("starts_at", "startsAt"),
        description="Not before this: ISO 8601, or from now on, such as `2h`.",
    )
    priority: Annotated[int, Field(ge=0, le=100)] = Field(10)
    requeue: bool | None = Field(
        None,
        description="Whether it may be ended and run again from its beginning when a more important session needs the "
        "room; batch sessions may if absent.",
    )
    dependencies: list[str] | None = Field(
        None, max_length=100, description="Names or ids of sessions that must succeed before."
    )
    dependency_failure: Literal["cancel", "start-anyway"] = Field(
        "cancel",
        validation_alias=_either("dependency_failure", "dependencyFailure"),
        description="When a dependency fails: `cancel` this session, or `start-anyway` once it has ended.",
    )
    pending_timeout: str | int | float | None = Field(
        None,
        validation_alias=_either("pending_timeout", "pendingTimeout"),
        description="Cancel it when it has waited so long for a place: seconds, or `30m`, `2h`; the resource group's "
        "if absent. Waiting for dependencies and for `starts_at` does not count.",
    )
    callback_url: str | None = Field(
        None, max_length=2048, validation_alias=_either("callback_url", "callbackUrl", "callbackURL")
    )
    architecture: str | None = Field(None, max_length=32, description="Of the nodes; any if absent.")
    domain: str | None = Field(None, max_length=64)
    group: str | None = Field(None, max_length=64, description="The project.")
    tag: str | None = Field(None, max_length=64)
    owner_access_key: str | None = Field(
        None,
        max_length=64,
        validation_alias=_either("owner_access_key", "ownerAccessKey"),
        description="Create it for another owner; for administrators.",
    )


class CreatedSession(BaseModel):
    """What became of a create call."""

    session_id: str = Field(serialization_alias="sessionId")
    session_name: str = Field(serialization_alias="sessionName")
    status: str = Field(description="The session's status, or TIMEOUT when the wait ended first.")
    status_info: str = Field(serialization_alias="statusInfo", description="Why, as a word.")
    message: str = Field(description="Why, as a sentence.")
    service_ports: list[dict[str, Any]] = Field(serialization_alias="servicePorts")
    created: bool = Field(description="False: a live session was reused.")
