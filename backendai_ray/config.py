"""Every setting of a cluster: one typed object, loaded once by ``bai up`` and passed down to the actors.

A setting comes from, in this order: ``bai up`` options, environment variables (``BAI_`` + the path, parts joined by
``__``: ``BAI_API__PORT=9000``), the TOML file given by ``bai up --config`` or ``BAI_CONFIG``, the default here.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from backendai_ray.core.errors import InvalidParameter

MIB = 2**20
GIB = 2**30


def default_data_dir() -> Path:
    """Return where an embedded cluster keeps its store, credentials and sessions' folders."""
    if os.geteuid() == 0:
        return Path("/var/lib/backendai-ray")
    return Path(os.environ.get("XDG_DATA_HOME", "~/.local/share")).expanduser() / "backendai-ray"


class _Section(BaseModel, extra="forbid", frozen=True):
    pass


class StoreSettings(_Section):
    """Durable state."""

    url: str = Field("", description="SQLAlchemy URL; empty: SQLite in the data folder. PostgreSQL: postgresql://…")
    pool_size: int = Field(4, ge=1, le=64, description="Connections to a PostgreSQL server, per Manager.")


class BusSettings(_Section):
    """The event bus."""

    url: SecretStr = Field(
        SecretStr(""), description="redis:// or rediss:// URL; empty: an embedded Valkey, started with the cluster."
    )
    stream_length: int = Field(100_000, ge=100, description="About how many events a stream keeps.")


class ApiSettings(_Section):
    """The HTTP front door."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8090, ge=0, le=65535, description="Port to listen on; 0 takes a free one at each `bai up`.")
    advertised_url: str = Field("", description="URL that clients use, when a proxy stands before the front door.")
    front_doors: int = Field(1, ge=1, le=64, description="How many front doors; they take consecutive ports.")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate chain; turns TLS on.")
    tls_key: Path | None = Field(None, description="PEM file with the private key.")
    max_json_bytes: int = Field(10 * MIB, ge=1024, description="Largest JSON body.")
    max_upload_bytes: int = Field(1 * GIB, ge=1024, description="Largest upload into a session, per request.")
    clock_skew_s: float = Field(900, gt=0, description="How far a signature's date may be from the server's clock.")
    create_wait_s: float = Field(
        60, ge=0, description="How long a create call waits for RUNNING when it does not say how long."
    )


class ManagerSettings(_Section):
    """Deadlines of the states (seconds) and the slow sweep."""

    pending_timeout_s: float | None = Field(None, gt=0, description="How long a session may wait; none: for ever.")
    pending_timeout_by_group_s: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="The same for single resource groups, by name."
    )
    scheduled_timeout_s: float = Field(30, gt=0, description="SCHEDULED: until the agent takes the order.")
    preparing_timeout_s: float = Field(60, gt=0, description="PREPARING.")
    pulling_timeout_s: float = Field(7200, gt=0, description="PULLING an image.")
    creating_timeout_s: float = Field(120, gt=0, description="CREATING: container made until its runner answers.")
    terminating_timeout_s: float = Field(30, gt=0, description="TERMINATING: then it is asked again, harder.")
    agent_lost_after_s: float = Field(60, gt=0, description="How long a node may be away before its kernels are lost.")
    heartbeat_timeout_s: float = Field(10, gt=0, description="Silence after which a node gets nothing new.")
    sweep_interval_s: float = Field(5, gt=0, description="The slow sweep that finds overdue states.")
    idempotency_ttl_s: float = Field(86400, gt=0, description="How long an idempotency key is remembered.")
    scheduling_history_keep_s: float = Field(
        30 * 86400, gt=0, description="How long is kept what the scheduler told a session that waited."
    )
    max_cluster_size: int = Field(64, ge=1, description="Largest gang.")


class SchedulerSettings(_Section):
    """Scheduling of the resource group ``default``."""

    policy: str = Field("fifo", description="Scheduling policy, by entry point name.")
    selection: str = Field("concentrated", description="Agent selection, by entry point name.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the policy.")
    sweep_interval_s: float = Field(10, gt=0, description="A pass runs at least this often, should a wake be lost.")


class RegistryLogin(_Section):
    """Who to be at a registry."""

    username: str = Field(description="The name.")
    password: SecretStr = Field(description="The password, or an access token.")


class DeviceSettings(_Section):
    """Device plug-ins."""

    mock: str = Field(
        "",
        description="Accelerators to pretend to have: a YAML file on the node, or the name of a shipped one (dgx1, "
        "box16); empty: none.",
    )

    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Options of device plug-ins that do not come with the program, by their name."
    )

    @field_validator("mock")
    @classmethod
    def _mock_file_is_found_from_anywhere(cls, name: str) -> str:
        """Make a path absolute here, where the person is who gave it: the agents work in other folders."""
        return str(Path(name).expanduser().absolute()) if name.endswith((".yaml", ".yml")) else name


class AgentSettings(_Section):
    """What runs on every node."""

    backend: Literal["auto", "docker", "process", "sim"] = Field(
        "auto",
        description="What kernels run in; auto: docker where an engine answers, else process. sim runs nothing.",
    )
    node_id: str = Field(
        "",
        pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$",
        description="The stable id of a one-machine cluster's node; empty: its host name. Elsewhere, the Ray node "
        "label backendai.io/node-id gives a node its id.",
    )
    resource_group: str = Field("default", description="The resource group of the node.")
    reserved_cpu: float = Field(0, ge=0, description="Cores kept back for the system.")
    reserved_mem: str = Field("512m", description="Memory kept back for the system.")
    cpu_overcommit: float = Field(1.0, ge=1, le=10, description="Cores given out per core there is.")
    mem_overcommit: float = Field(1.0, ge=1, le=10, description="Memory given out per byte there is.")
    max_kernels: int = Field(0, ge=0, description="Most kernels on the node; 0: as many as fit.")
    default_image: str = Field(
        "backendai-ray/python:3.11-bookworm", description="What the image name `python` stands for on Docker."
    )
    image_aliases: dict[str, str] = Field(default_factory=dict, description="Short names of images.")
    pull_policy: Literal["missing", "never", "always"] = Field("missing", description="When to pull an image.")
    registries: dict[str, RegistryLogin] = Field(
        default_factory=dict,
        description="Logins at registries, by host (and port, if it has one); `docker.io` for images without a host.",
    )
    image_disk_high_percent: int = Field(
        85, ge=1, le=100, description="How full the engine's disk may be before images are removed; 100: never."
    )
    image_disk_low_percent: int = Field(80, ge=0, le=100, description="Images are removed until it is no fuller.")
    pids_limit: int = Field(1024, ge=16, description="Most processes and threads in a kernel.")
    stop_grace_s: float = Field(5, ge=0, description="Between the polite and the hard end of a kernel.")
    log_bytes: int = Field(1 * MIB, ge=4096, description="How much of a kernel's log is kept after its end.")
    output_buffer_bytes: int = Field(16 * MIB, ge=65536, description="Unread output kept per run.")
    heartbeat_interval_s: float = Field(2, gt=0, description="How often an agent says that it is there.")
    runner_start_timeout_s: float = Field(30, gt=0, description="From container start to the runner's first answer.")
    create_concurrency: int = Field(8, ge=1, le=64, description="Kernels made at the same time on a node.")
    warm_pool: int = Field(
        2,
        ge=0,
        le=64,
        description="Containers started ahead on the node, of the images asked for most of late, so that a session "
        "starts at once; 0: none. Docker only.",
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> AgentSettings:
        if self.image_disk_low_percent > self.image_disk_high_percent:
            raise ValueError("image_disk_low_percent: is above image_disk_high_percent")
        return self

    devices: DeviceSettings = Field(default_factory=DeviceSettings, description="What device plug-ins are told.")


class Settings(BaseSettings):
    """All settings of a cluster."""

    model_config = SettingsConfigDict(env_prefix="BAI_", env_nested_delimiter="__", extra="ignore", frozen=True)

    data_dir: Path = Field(default_factory=default_data_dir, description="Where the cluster keeps its files.")
    namespace: str = Field("backendai", description="Ray namespace of the actors.")
    object_store_bytes: int = Field(80_000_000, ge=80_000_000, description="Ray object store of an embedded cluster.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    store: StoreSettings = Field(default_factory=StoreSettings, description="Durable state.")
    bus: BusSettings = Field(default_factory=BusSettings, description="The event bus.")
    api: ApiSettings = Field(default_factory=ApiSettings, description="The HTTP front door.")
    manager: ManagerSettings = Field(default_factory=ManagerSettings, description="Deadlines and sweeps.")
    scheduler: SchedulerSettings = Field(default_factory=SchedulerSettings, description="Scheduling.")
    agent: AgentSettings = Field(default_factory=AgentSettings, description="What runs on every node.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over what the file says (which comes in as init values)."""
        return env_settings, init_settings

    @property
    def store_url(self) -> str:
        """The store's URL with the default filled in."""
        return self.store.url or f"sqlite:///{self.data_dir / 'store.db'}"

    @property
    def sessions_dir(self) -> Path:
        """Where an agent keeps kernels' records and folders."""
        return self.data_dir / "sessions"

    @property
    def cache_dir(self) -> Path:
        """Where an agent keeps what it fetched or built for kernels."""
        return self.data_dir / "cache"


def load_settings(config_file: Path | None = None, **overrides: Any) -> Settings:
    """Load the settings.

    Args:
        config_file: A TOML file; default: the path in ``BAI_CONFIG``, if set.
        overrides: Values that win over the file, as nested dicts; the environment still wins over them.

    Raises:
        InvalidParameter: the file cannot be read, or a setting is unknown or out of range; the message names it.
    """
    path = config_file or (Path(os.environ["BAI_CONFIG"]) if os.environ.get("BAI_CONFIG") else None)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise InvalidParameter(f"config: {path} cannot be read: {exc}", field="config") from exc
        unknown = sorted(values.keys() - Settings.model_fields.keys())
        if unknown:
            raise InvalidParameter(f"config: {path}: unknown settings: {', '.join(unknown)}", field=unknown[0])
    _merge(values, overrides)
    try:
        return Settings(**values)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidParameter(f"setting {name}: {first['msg']}", field=name) from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
