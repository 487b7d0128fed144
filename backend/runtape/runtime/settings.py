"""Settings: read once, here, from the environment and ``runtape.toml``, and passed on as values.

A setting `a.b` is ``RUNTAPE_A__B`` in the environment and ``b`` under ``[a]`` in ``<data>/runtape.toml``; the
environment wins.
"""

import ipaddress
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from runtape.domain.limits import MAXIMUM, LimitPolicy, Limits
from runtape.ports.admission import Capacity
from runtape.ports.limits import Allowance
from runtape.runtime.parts import KafkaSettings, MongoSettings, RedisSettings, RegistrySettings, Section
from runtape.runtime.pods import KubernetesSettings

ENV_PREFIX = "RUNTAPE_"
CONFIG_FILE = "runtape.toml"
_CORES = len(os.sched_getaffinity(0))


class InvalidSettings(Exception):
    """Settings that do not hold; the message names each of them."""


def default_data_dir() -> Path:
    """Return the data folder of this user."""
    if given := os.environ.get("RUNTAPE_DATA"):
        return Path(given)
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "runtape"


class RateLimitSettings(Section):
    """Allowances per principal and minute."""

    executions_per_minute: int = Field(default=600, ge=1, description="executions accepted per principal and minute")
    calls_per_minute: int = Field(default=3000, ge=1, description="other API calls per principal and minute")
    logins_per_minute: int = Field(default=20, ge=1, description="login attempts per peer address and minute")


class AdmissionSettings(Section):
    """How many executions run and wait."""

    running: int = Field(default=2 * _CORES, ge=1, le=1024, description="executions that run at once")
    running_per_project: int | None = Field(default=None, ge=1, description="of one project; all of them unless set")
    running_per_lang: int | None = Field(default=None, ge=1, description="of one language; all of them unless set")
    queued: int = Field(default=10_000, ge=0, description="executions that wait; beyond that 503 queue_full")
    queued_per_project: int = Field(default=5_000, ge=0, description="executions of one project that wait")
    ageing_s: float = Field(
        default=300.0, gt=0, description="wait after which an execution counts one priority higher, and so on, s"
    )


class LimitSettings(Section):
    """The limits of a run, where a request does not ask for others; units are in the names."""

    wall_s: float = Field(default=10.0, gt=0, description="wall time, s")
    cpu_s: float = Field(default=10.0, gt=0, description="CPU time of the whole process tree, s")
    memory_mb: int = Field(default=256, ge=16, description="memory of the whole process tree, MiB")
    output_bytes: int = Field(default=1 << 20, ge=1, description="stdout and stderr together, bytes")
    processes: int = Field(default=64, ge=1, description="processes and threads")
    disk_mb: int = Field(default=64, ge=1, description="size of the work directory, MiB")
    inodes: int = Field(default=4096, ge=16, description="files and folders in the work directory")
    open_files: int = Field(default=256, ge=16, description="open files per process")
    artifact_bytes: int = Field(default=16 << 20, ge=0, description="files kept of those that a run leaves, bytes")
    artifacts: int = Field(default=100, ge=0, description="files kept of those that a run leaves; 0 keeps none")

    def limits(self) -> Limits:
        """Return them as the domain's value."""
        return Limits(**self.model_dump())


class MaximumSettings(LimitSettings):
    """The greatest limits that a request may ask for."""

    wall_s: float = Field(default=MAXIMUM.wall_s, gt=0, description="wall time, s")
    cpu_s: float = Field(default=MAXIMUM.cpu_s, gt=0, description="CPU time of the whole process tree, s")
    memory_mb: int = Field(default=MAXIMUM.memory_mb, ge=16, description="memory of the whole process tree, MiB")
    output_bytes: int = Field(default=MAXIMUM.output_bytes, ge=1, description="stdout and stderr together, bytes")
    processes: int = Field(default=MAXIMUM.processes, ge=1, description="processes and threads")
    disk_mb: int = Field(default=MAXIMUM.disk_mb, ge=1, description="size of the work directory, MiB")
    inodes: int = Field(default=MAXIMUM.inodes, ge=16, description="files and folders in the work directory")
    open_files: int = Field(default=MAXIMUM.open_files, ge=16, description="open files per process")
    artifact_bytes: int = Field(
        default=MAXIMUM.artifact_bytes, ge=0, description="files kept of those that a run leaves, bytes"
    )
    artifacts: int = Field(default=MAXIMUM.artifacts, ge=0, description="files kept of those that a run leaves")


class SandboxSettings(Section):
    """The local sandbox."""

    armed: int = Field(default=2 * _CORES, ge=1, le=256, description="boxes kept ready for the next programs")
    boxes_per_slot: int = Field(
        default=1000,
        ge=1,
        description="runs that share a network namespace, a host uid and a cgroup, one after another; 1: none do",
    )
    runtime_class: Literal["linux", "gvisor"] = Field(
        default="linux", description="whose kernel programs run on: this host's, or gVisor's (slower; needs runsc)"
    )


class PackageSettings(Section):
    """Packages that runs ask for."""

    enabled: bool = Field(default=True, description="whether a run may have requirements")
    index_url: SecretStr | None = Field(
        default=None, description="the package index; as uv's environment variables say unless set"
    )
    max_bytes: int = Field(default=1 << 30, ge=1 << 20, description="installed size of one set of packages, bytes")
    cache_bytes: int = Field(
        default=4 << 30, ge=1 << 20, description="size of the sets that are kept, and of the wheels, bytes each"
    )
    reuse_s: float = Field(default=86_400.0, ge=0, description="age at which a set is resolved anew, s")
    resolve_timeout_s: float = Field(default=120.0, gt=0, description="time to resolve and install a set, s")


class StreamSettings(Section):
    """Event streams."""

    heartbeat_s: float = Field(default=15.0, gt=0, description="silence after which a stream sends a heartbeat, s")
    send_timeout_s: float = Field(default=30.0, gt=0, description="how long a client may take nothing, s")


class RetentionSettings(Section):
    """How long things are kept, in days since an execution was accepted, else since it happened; unset: for ever."""

    executions_days: float | None = Field(default=90.0, gt=0, description="ended executions with their results")
    tapes_days: float | None = Field(default=30.0, gt=0, description="what executions have printed")
    events_days: float | None = Field(default=30.0, gt=0, description="messages of the log, and those in its archive")
    dead_letters_days: float | None = Field(
        default=30.0, gt=0, description="dead letters: open ones are discarded then, and resolved ones removed"
    )
    notifications_days: float | None = Field(default=30.0, gt=0, description="notifications, read or not")
    replays_days: float | None = Field(default=7.0, gt=0, description="replay sessions that ended, with their files")


class FlowSettings(Section):
    """How steps are committed."""

    fused: bool = Field(default=True, description="commit the steps up to the next effect together; off for tests")
    at_once: int = Field(default=256, ge=1, description="executions whose messages a consumer group handles at once")


class WorkerSettings(Section):
    """A worker process of the profile ``cluster``."""

    host: str = Field(default="127.0.0.1", description="the address that its health is told at")
    port: int = Field(default=8401, ge=0, le=65535, description="the port of that; 0 takes a free one")
    drain_s: float = Field(default=25.0, ge=0, description="how long programs may go on after SIGTERM, s")
    pods: Literal["sandbox", "kubernetes"] = Field(
        default="sandbox", description="where programs run: in sandboxes on the k8s_worker's own machine, or in pods"
    )


class Settings(BaseSettings):
    """Everything an operator may set."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        nested_model_default_partial_update=True,
    )

    profile: Literal["embedded", "cluster"] = Field(
        default="embedded", description="everything in one process, or over Kafka, MongoDB and Redis"
    )
    data: Path = Field(default_factory=default_data_dir, description="the data folder")
    admin_password: SecretStr | None = Field(default=None, description="the first start's password of the user admin")
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="least severe log line written"
    )
    trusted_proxies: str = Field(
        default="",
        description="addresses and networks, with commas between them, that may say for whom they ask "
        "(X-Forwarded-For, X-Forwarded-Proto)",
    )
    rate_limits: RateLimitSettings = RateLimitSettings()
    admission: AdmissionSettings = AdmissionSettings()
    limits: LimitSettings = LimitSettings()
    maximum: MaximumSettings = MaximumSettings()
    sandbox: SandboxSettings = SandboxSettings()
    packages: PackageSettings = PackageSettings()
    streams: StreamSettings = StreamSettings()
    retention: RetentionSettings = RetentionSettings()
    flow: FlowSettings = FlowSettings()
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    mongo: MongoSettings = MongoSettings()
    redis: RedisSettings = RedisSettings()
    credentials_in_clear: bool = Field(
        default=False,
        description="whether credentials may leave this machine without TLS, because something else encrypts",
    )
    worker: WorkerSettings = WorkerSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()

    @classmethod
    def read(cls, **given: Any) -> Self:
        """Return the settings, those in `given` before all others.  Raises: InvalidSettings."""
        try:
            return cls(**given)
        except ValidationError as error:
            found = error.errors(include_input=False)
            wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ") for each in found]
            told = "; ".join(wrong).replace("Value error, ", "")
            raise InvalidSettings(f"a setting is not valid: {told}") from None
        except SettingsError as error:  # names the variable; what stands in it is not JSON
            raise InvalidSettings(f"a setting is not valid: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise InvalidSettings(f"{CONFIG_FILE} is no TOML: {error}") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        given: Any = getattr(init_settings, "init_kwargs", {})
        folder = Path(given.get("data") or default_data_dir())
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, folder / CONFIG_FILE)

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, given: str) -> str:
        for each in _listed(given):
            try:
                ipaddress.ip_network(each)
            except ValueError as error:
                raise ValueError(f"{error}; it looks like 10.0.0.2 or 10.0.0.0/24") from None
        return given

    @model_validator(mode="after")
    def _defaults_lie_within_the_bounds(self) -> Self:
        for name in type(self.limits).model_fields:
            default, most = getattr(self.limits, name), getattr(self.maximum, name)
            if default > most:
                raise ValueError(f"limits.{name} is {default}, more than maximum.{name}, which is {most}")
        return self

    @model_validator(mode="after")
    def _the_parts_can_be_reached(self) -> Self:
        clear = self.credentials_in_clear
        wrong = [
            *self._missing_parts(),
            *self.kafka.problems(credentials_in_clear=clear),
            *self.registry.problems(credentials_in_clear=clear),
            *self.mongo.problems(credentials_in_clear=clear),
            *self.redis.problems(credentials_in_clear=clear),
            *self.kubernetes.problems(),
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _missing_parts(self) -> Iterator[str]:
        needed = {
            "KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "REGISTRY__URL": self.registry.url,
            "MONGO__URL": self.mongo.url,
            "REDIS__URL": self.redis.url,
        }
        missing = [ENV_PREFIX + name for name, value in needed.items() if value is None]
        if self.profile == "cluster" and missing:
            yield f"the profile cluster needs {', '.join(missing)}"

    @cached_property
    def proxies(self) -> list[str]:
        """The addresses and networks of trusted proxies, each by itself."""
        return _listed(self.trusted_proxies)

    @cached_property
    def limit_policy(self) -> LimitPolicy:
        """The limits as the domain's value."""
        return LimitPolicy(default=self.limits.limits(), maximum=self.maximum.limits())

    @cached_property
    def capacity(self) -> Capacity:
        """The capacity as the admission queue's value."""
        admission = self.admission
        return Capacity(
            running=admission.running,
            running_per_project=admission.running_per_project or admission.running,
            running_per_lang=admission.running_per_lang or admission.running,
            queued=admission.queued,
            queued_per_project=admission.queued_per_project,
            ageing_s=admission.ageing_s,
        )

    @cached_property
    def allowances(self) -> dict[str, Allowance]:
        """The allowances by the gate's groups."""
        limits = self.rate_limits
        return {
            "execute": Allowance(limits.executions_per_minute, 60.0),
            "other": Allowance(limits.calls_per_minute, 60.0),
            "auth": Allowance(limits.logins_per_minute, 60.0),
        }


def _listed(text: str) -> list[str]:
    return [each for each in map(str.strip, text.split(",")) if each]


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One effective setting: its `value` as text, masked when it is secret, and where it comes from."""

    name: str
    value: str
    source: str
    description: str
    secret: bool


def describe(data_dir: Path | None = None) -> list[SettingRow]:
    """Return the effective settings, in the order of the model.  Raises: InvalidSettings."""
    settings = Settings.read(data=data_dir) if data_dir else Settings.read()
    file_values = TomlConfigSettingsSource(Settings, settings.data / CONFIG_FILE)()
    return list(_rows(settings, file_values, ()))


def _rows(model: BaseModel, file_values: Any, path: tuple[str, ...]) -> list[SettingRow]:
    rows: list[SettingRow] = []
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        here = (*path, name)
        in_file = file_values.get(name) if isinstance(file_values, dict) else None
        if isinstance(value, BaseModel):
            rows += _rows(value, in_file or {}, here)
            continue
        variable = ENV_PREFIX + "__".join(here).upper()
        if variable in os.environ:
            source = variable
        elif in_file is not None:
            source = CONFIG_FILE
        else:
            source = "default"
        secret = isinstance(value, SecretStr) or "password" in name
        shown = "" if value is None else "********" if secret else str(value)
        rows.append(SettingRow(".".join(here), shown, source, info.description or "", secret))
    return rows
