"""The one place where the environment is read. Everything else is passed a Settings.

Each field is set by MODALBRIDGE_<NAME>. The defaults are the embedded set-up: SQLite, Kombu's filesystem transport, a
local blob folder, all below `data_dir`.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "MODALBRIDGE_"
ELSEWHERE = ("URL", "DATA", "BIND", "PORT", "GPU", "BENCHMARK_DATA", "TEST_POSTGRES", "TEST_RABBITMQ")
"""Of the client, docker-compose.yml, the benchmarks and the tests."""
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_][A-Za-z0-9_.-]*)*/?")

_ADDRESS = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")
_MODEL_NAME = re.compile(r"([^{}/:]|\{[A-Za-z0-9_.-]{1,63}\})*")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:(?!443$)[0-9]{1,5})?")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # it may be a password
    )

    hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names by which the front end is called, separated by commas, besides addresses, localhost and names of one label; *: by any.
    A proxy passes on the one that browsers use."""
    data_dir: Path = Path("var")
    """Holds the database, the broker's folder, blobs and the workers' scratch, unless they are set apart."""
    database_url: str = ""
    """SQLAlchemy URL, such as postgresql+psycopg://user@host/name. Default: SQLite in data_dir."""
    broker_url: str = "filesystem://"
    """Celery broker. It carries wake-ups alone: nothing is lost with it."""
    data_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders, separated by `:`, below which file:// references may lie. Default: none, so every reference is refused."""
    blobs_url: str = ""
    """Where uploads, results and checkpoints are kept: s3://bucket or s3://bucket/prefix, for this service alone.
    Default: a folder in data_dir. Credentials and region are found as boto3 finds them."""
    s3_endpoint_url: str = ""
    """Of an S3-compatible store, such as http://minio:9000. Default: AWS."""

    data_buckets: Annotated[tuple[str, ...], NoDecode] = ()
    """s3://bucket or s3://bucket/prefix, separated by commas, below which s3:// references may lie. Default: none."""
    data_s3_endpoint_url: str = ""
    """Of the S3-compatible store that data_buckets are in. Default: s3_endpoint_url."""

    data_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts, as name or name:port, separated by commas, from which https:// references may be fetched. Default: none."""
    data_private_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Those of data_hosts that may have private addresses. Default: none: such an address is refused."""
    data_ca_file: str = ""
    """Certificates, as PEM, that data_hosts are trusted by besides those of public authorities."""

    max_upload_bytes: int = Field(4 * 2**30, gt=0)
    """Of a source model's file. The bytes are counted as they stream in."""
    max_dataset_bytes: int = Field(16 * 2**30, gt=0)
    """Of a dataset's archive, counted likewise."""
    max_unpacked_bytes: int = Field(64 * 2**30, gt=0)
    """Of what is in one."""
    max_request_bytes: int = Field(2**20, gt=0)
    """Of a JSON body or a JSON part."""
    wait_limit_s: float = Field(60, gt=0)
    """Longest `?wait=` of a poll."""
    stream_limit_s: float = Field(900, gt=0)
    """A Server-Sent Events stream is closed after this long; the client goes on with Last-Event-ID."""

    queue_label: str = Field("", pattern=r"^[A-Za-z0-9_.-]{0,63}$")
    """A label, such as team: queued jobs with different values of it take turns. Default: each tenant's jobs are one queue."""
    lease_s: float = Field(30, gt=0)
    """A worker that has not renewed for this long has lost its job. Renewed every third of it."""
    max_lost_attempts: int = Field(3, ge=1)
    """A job whose worker or process vanished this often ends as failed."""
    min_free_bytes: int = Field(256 * 2**20, ge=0)
    """A worker takes no job while less than this is free where its scratch lies."""
    lost_backoff_s: float = Field(10, ge=0)
    """A lost attempt is followed by the next after this long, the next but one after twice as long, and so on."""
    housekeeping_s: float = Field(5, gt=0)
    """Between two passes of a worker's housekeeping, which is also its heartbeat."""
    worker_silent_s: float = Field(30, gt=0)
    """A worker not heard from for this long counts as gone."""
    cancel_grace_s: float = Field(20, gt=0)
    """From asking a job's process to stop to killing its process group."""
    job_time_limit_s: float = Field(24 * 3600, gt=0)
    """Of one attempt."""
    webhook_private_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts, separated by commas, that webhooks may lead to though their addresses are private, or by http://. Default: none."""
    keep_succeeded_s: float = Field(0, ge=0)
    """Jobs that succeeded are deleted, with their artifacts, this long after their end. 0: when a client deletes them."""
    keep_failed_s: float = Field(0, ge=0)
    """The same of jobs that failed or were cancelled."""
    storage_bytes: int = Field(0, ge=0)
    """What a tenant's source models, datasets and artifacts may take in the blob store. At it no upload and no job is accepted; jobs
    that were are still published. 0: no limit."""
    processes_per_job: int = Field(1, ge=1, le=64)
    """Processes that a worker has work on each job, each on a GPU of its own where it uses GPUs."""
    child_memory_bytes: int = Field(0, ge=0)
    """Of a job's process (RLIMIT_DATA), or of all of them together. 0: 80 % of the machine's memory."""
    child_file_bytes: int = Field(256 * 2**30, gt=0)
    """Of one file that a job's process writes (RLIMIT_FSIZE)."""
    checkpoint_s: float = Field(30, gt=0, le=60)
    """At most this long between two checkpoints."""

    cache_dir: str = ""
    """Where workers unpack datasets, once for all jobs. Several workers of a machine may share it. Default: in data_dir."""
    cache_bytes: int = Field(64 * 2**30, gt=0)
    """What is not in use is deleted, the least recently used first, to keep within this."""

    log_format: Literal["text", "json"] = "text"
    """Of our own log lines: `json` is one object a line."""

    takes_cuda: bool | None = None
    """Whether a worker takes jobs with `device: cuda`. Default: if NVIDIA's driver shows it a GPU."""

    metrics_port: int = Field(0, ge=0, le=65535)
    """A worker tells its numbers to Prometheus at this port. 0: it does not."""
    metrics_host: str = "127.0.0.1"
    """Address that a worker's metrics_port is opened on."""

    mlflow_tracking_uri: str = ""
    """http:// or https:// address of an MLflow tracking server, which workers tell of each job. Default: none. Its credentials are
    found as MLflow's client finds them."""
    mlflow_experiment: str = Field("modalbridge", min_length=1, max_length=500)
    """Where the runs are. Made if it is not there."""
    mlflow_model: str = "modalbridge"
    """The registered model of which each succeeded job becomes a version. {team} in it stands for the value of the job's label
    `team`; a job without it is not registered. Empty: none is."""
    mlflow_file_bytes: int = Field(2 * 2**30, ge=0)
    """A larger file of a job is not copied to MLflow; a model that it belongs to is not registered."""

    mlflow_ui_url: str = ""
    """http:// or https:// address at which browsers reach MLflow: a job's page then has a link to its run. Default: no link."""

    @field_validator("database_url")
    @classmethod
    def _database_is_one_of_two(cls, value: str) -> str:
        if value and not value.startswith(("sqlite://", "sqlite+pysqlite://", "postgresql+psycopg://")):
            raise ValueError(
                "must begin with postgresql+psycopg:// (PostgreSQL, by psycopg 3) or sqlite://, or be empty for SQLite"
            )
        return value

    @field_validator("broker_url")
    @classmethod
    def _broker_is_a_url(cls, value: str) -> str:
        if not re.match(r"[a-z+]+://", value):
            raise ValueError("must be a URL, such as redis://:password@host:6379/0 or amqp://user:password@host//")
        return value

    @field_validator("blobs_url")
    @classmethod
    def _blobs_are_a_bucket(cls, value: str) -> str:
        if value and not _BUCKET.fullmatch(value):
            raise ValueError(f"blobs_url must be s3://bucket or s3://bucket/prefix, or empty for a folder: {value!r}")
        return value

    @field_validator("s3_endpoint_url", "data_s3_endpoint_url")
    @classmethod
    def _endpoint_is_http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"an S3 endpoint must begin with http:// or https://: {value!r}")
        return value

    @field_validator("mlflow_tracking_uri", "mlflow_ui_url")
    @classmethod
    def _mlflow_is_http(cls, value: str, info: ValidationInfo) -> str:
        if value and not _ADDRESS.fullmatch(value):
            raise ValueError(f"{info.field_name} must begin with http:// or https:// and hold no user or password")
        return value

    @field_validator("mlflow_model")
    @classmethod
    def _mlflow_model_is_a_name(cls, value: str) -> str:
        if not _MODEL_NAME.fullmatch(value):
            raise ValueError(f"mlflow_model must be a name without / and :, with {{label}} at most: {value!r}")
        return value

    @field_validator("data_buckets", "data_hosts", "data_private_hosts", mode="before")
    @classmethod
    def _split_by_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("data_hosts", "data_private_hosts")
    @classmethod
    def _hosts_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in value if not _HOST.fullmatch(one)]:
            raise ValueError(f"hosts must be names in small letters, each with :port unless that is 443: {', '.join(wrong)}")
        return value

    @field_validator("hosts")
    @classmethod
    def _own_hosts_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in value if one != "*" and (":" in one or not _HOST.fullmatch(one))]:
            raise ValueError(f"hosts must be names, without scheme and port, or * for any: {', '.join(wrong)}")
        return value

    @field_validator("webhook_private_hosts")
    @classmethod
    def _webhooks_lead_to_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in value if not _is_address(one) and re.search(r"[:/\s]", one)]:
            raise ValueError(f"hosts must be names or addresses, without scheme and port: {', '.join(wrong)}")
        return value

    @field_validator("data_ca_file")
    @classmethod
    def _certificates_are_there(cls, value: str) -> str:
        if value and not Path(value).is_file():
            raise ValueError(f"there is no file {value}")
        return value

    @field_validator("data_buckets")
    @classmethod
    def _data_are_in_buckets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in value if not _BUCKET.fullmatch(one)]:
            raise ValueError(f"data_buckets must be s3://bucket or s3://bucket/prefix: {', '.join(wrong)}")
        return value

    @field_validator("hosts", "webhook_private_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        return tuple(part.strip().lower() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("data_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(os.pathsep) if part) if isinstance(value, str) else value

    @field_validator("data_roots")
    @classmethod
    def _roots_are_absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if relative := [str(root) for root in value if not root.is_absolute()]:
            raise ValueError(f"data_roots must be absolute: {', '.join(relative)}")
        return value

    @model_validator(mode="after")
    def _blobs_are_no_data(self) -> Settings:
        """Else whoever may submit a job could have another's artifacts read."""
        blobs = f"{self.blobs_url.rstrip('/')}/"
        elsewhere = self.data_s3_endpoint_url not in ("", self.s3_endpoint_url)
        for one in self.data_buckets:
            if self.blobs_url and not elsewhere and (blobs.startswith(f"{one.rstrip('/')}/") or one.startswith(blobs)):
                raise ValueError(f"data_buckets must not open the blob store: {one} and {self.blobs_url}")
        return self

    @model_validator(mode="after")
    def _private_hosts_are_opened(self) -> Settings:
        opened = {one.partition(":")[0] for one in self.data_hosts}
        if closed := [one for one in self.data_private_hosts if one.partition(":")[0] not in opened]:
            raise ValueError(f"data_private_hosts are some of data_hosts, and these are not: {', '.join(closed)}")
        return self

    @model_validator(mode="after")
    def _a_worker_is_heard_before_it_counts_as_gone(self) -> Settings:
        if self.worker_silent_s <= self.housekeeping_s:
            raise ValueError(
                f"worker_silent_s ({self.worker_silent_s:g}) must be more than housekeeping_s ({self.housekeeping_s:g}), at which "
                "a worker says that it lives: else each counts as gone again and again"
            )
        return self

    @property
    def sqlalchemy_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'modalbridge.db'}"

    @property
    def blob_dir(self) -> Path:
        return self.data_dir.absolute() / "blobs"

    @property
    def broker_dir(self) -> Path:
        return self.data_dir.absolute() / "broker"

    @property
    def cache_folder(self) -> Path:
        return (Path(self.cache_dir) if self.cache_dir else self.data_dir / "cache").absolute()

    @property
    def work_dir(self) -> Path:
        return self.data_dir.absolute() / "work"


def read() -> Settings:
    """Of the environment. Raises SystemExit, with each variable that is wrong and why."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = [(PREFIX + str(one["loc"][0]).upper() if one["loc"] else "settings", one["msg"]) for one in error.errors()]
        lines = [f"  {name}: {why.removeprefix('Value error, ')}" for name, why in wrong]
        raise SystemExit("\n".join(["the environment is not one to start with:", *lines])) from None


def doubts(settings: Settings, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """What will not do what whoever set it expects."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name.removeprefix(PREFIX) not in ELSEWHERE:
            like = difflib.get_close_matches(name, known, 1, cutoff=0.85)
            yield f"{name} is no setting, and counts for nothing" + (f": is it {like[0]}?" if like else "")
    for root in settings.data_roots:
        if not root.is_dir():
            yield f"{root}, of {PREFIX}DATA_ROOTS, is no folder here: references below it are refused"


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


class Telemetry(BaseSettings):
    """Of OpenTelemetry's own variables those that decide whether there are traces. The rest (headers, timeouts, sampling, names)
    its SDK reads by itself."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", env_ignore_empty=True, frozen=True)

    exporter_otlp_endpoint: str = ""
    exporter_otlp_traces_endpoint: str = ""
    exporter_otlp_protocol: str = "http/protobuf"
    exporter_otlp_traces_protocol: str = ""
    traces_exporter: str = "otlp"
    sdk_disabled: str = ""

    @property
    def traces(self) -> bool:
        """Whether a receiver is named, and nothing else switches them off."""
        off = self.sdk_disabled.strip().lower() == "true" or self.traces_exporter.strip().lower() == "none"
        return bool(self.exporter_otlp_traces_endpoint or self.exporter_otlp_endpoint) and not off

    def check(self) -> None:
        """Raises RuntimeError where traces are asked for in a way that is not ours."""
        endpoint = self.exporter_otlp_traces_endpoint or self.exporter_otlp_endpoint
        if not endpoint.startswith(("http://", "https://")):
            raise RuntimeError(f"OTEL_EXPORTER_OTLP_ENDPOINT must begin with http:// or https://: {endpoint!r}")
        protocol = self.exporter_otlp_traces_protocol or self.exporter_otlp_protocol
        if protocol != "http/protobuf":
            raise RuntimeError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf (port 4318 of most receivers): {protocol!r}")
        if self.traces_exporter.strip().lower() != "otlp":
            raise RuntimeError(f"OTEL_TRACES_EXPORTER must be otlp or none: {self.traces_exporter!r}")
