"""Settings of the service: read once, from the environment (prefix ``SKILLET_``) and the command line."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from service.errors import StartupError
from service.logs import LogFormat, LogLevel


class Settings(BaseSettings):
    """Everything that can be set, with its unit in the name."""

    model_config = SettingsConfigDict(env_prefix="SKILLET_", frozen=True, extra="forbid")

    bundles: tuple[Path, ...] = Field(default=(), description="bundle directories to serve; a session without a choice takes the first")
    bundle_keys: tuple[Path, ...] = Field(
        default=(), description="public keys (Ed25519, PEM): bundles that none of them signed are refused"
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes any free port")
    insecure_no_auth: bool = Field(default=False, description="ask nobody for a token, wherever the service listens")
    first_token: bool = Field(default=False, description="beyond this machine, while there is no token: make an admin's and print it once")
    tls_cert: Path | None = Field(default=None, description="certificate (PEM, with those between it and its root): listen with TLS")
    tls_key: Path | None = Field(default=None, description="its private key (PEM, without a password)")
    redis_url: str | None = Field(default=None, description="unset: an embedded Redis is started under data_dir")
    data_dir: Path = Path(".skillet")
    workers: int = Field(default=1, ge=1, description="API processes that serve")
    standby_workers: int = Field(default=1, ge=0, description="loaded API processes that take over when one that serves dies")
    durability: Literal["second", "strict"] = Field(
        default="second",
        description="what a power loss may take of what was acknowledged: the last second or two, or (strict) nothing",
    )
    learners: int = Field(default=1, ge=0, description="learner processes started beside the API")
    envelope: bool = Field(default=True, description="hold actions inside the bundles' safety envelopes, not only their specs' limits")
    log_format: LogFormat = Field(default="human", description="lines for people, or one JSON object a line")
    log_level: LogLevel = "info"
    access_log: bool = Field(default=False, description="log every request; control steps skip the fast lane then: some 40 % longer")
    tracing: bool = Field(default=False, description="OpenTelemetry spans, where OTEL_* says; extra `tracing`; costs as access_log does")
    redis_timeout_s: float = Field(default=1.5, gt=0)
    max_in_flight: int = Field(default=64, gt=0, description="requests that an API process has at a time; more are refused with 503")
    requests_per_s: float = Field(default=0, ge=0, description="that an API process takes from all callers together; 0: no limit")
    requests_per_s_per_token: float = Field(default=10_000, ge=0, description="that it takes from tokens of one name; 0: no limit")
    max_sessions: int = Field(default=100_000, gt=0, description="sessions that may be open")
    max_sessions_per_token: int = Field(default=1000, gt=0, description="sessions that tokens of one name may have open")
    reap_interval_s: float = Field(default=30.0, gt=0, description="time between two looks for expired sessions")
    drain_s: float = Field(default=5.0, gt=0, description="how long a stopping API process waits for the replies that are under way")
    max_body_bytes: int = Field(default=2**20, gt=0)
    max_steps_ahead: int = Field(default=1000, gt=0, description="steps that may be acted before their transitions are posted")
    reorder_window: int = Field(default=256, gt=0, description="steps of an episode that are held for a missing one before them")
    inference_interval_s: float = Field(default=1.0, ge=0, description="shortest time between two task inferences within an episode")
    cached_versions: int = Field(default=2048, gt=0, description="fine-tuned policies that an API process holds ready")
    kept_versions: int = Field(default=12, gt=1, description="published versions of a session whose weights are kept")
    wait_poll_s: float = Field(default=0.02, gt=0, description="shortest time between two looks of a request that waits for a learner")
    lease_s: float = Field(default=10.0, gt=0, description="a learner that shows no life for this long loses its jobs")
    slice_updates: int = Field(default=50, gt=0, description="gradient steps that a learner makes before it looks up")
    checkpoint_interval_s: float = Field(default=10.0, ge=0, description="time between two checkpoints while a job runs")
    active_sessions: int = Field(default=16, gt=0, description="fine-tuned sessions that a learner holds in memory")


def read_settings(**given: Any) -> Settings:
    """What is given, over what the environment sets. Raises StartupError for a value that does not fit."""
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise StartupError(f"setting {first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error
    except SettingsError as error:  # a variable that holds no JSON; its message names the field alone
        variable = next((f"SKILLET_{name.upper()}" for name in re.findall(r'field "(\w+)"', str(error))), "a variable")
        received = os.environ.get(variable)
        raise StartupError(f'{variable}: expected a JSON list, such as ["bundles/maze"], got {received!r}') from error
