"""What an operator can set. The command builds it once and passes it on; nothing else reads the environment.

Order: command line > environment (ROBUSTCLIP_SECTION__FIELD) > robustclip.toml > the defaults below. These
settings are the service's only: training takes options alone, which the manifest of its prompt set records.
"""

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from robustclip import DEFAULT_BACKBONE
from robustclip.errors import InvalidInput

PREFIX = "ROBUSTCLIP_"
CONFIG_FILE = Path("robustclip.toml")

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _radius(value: str | float) -> float:
    from robustclip.threat import parse_radius  # brings torch, and --help must not wait for it

    return parse_radius(value, "probe.radius")


RadiusSetting = Annotated[float, BeforeValidator(_radius), Field(le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClipSettings(_Section):
    arch: str = Field(
        default=DEFAULT_BACKBONE,
        description="embedded backbone, open_clip architecture, local-dir:PATH, or hf-hub:owner/repository",
    )
    pretrained: str | None = Field(
        default=None,
        description="open_clip TAG, FILE or TAG=FILE, with +FILE for another image tower; not if embedded",
    )
    device: str = Field(default="cpu", description="where torch computes: cpu, cuda, cuda:1")


class StoreSettings(_Section):
    path: Path = Field(
        default=Path("var/prompts"),
        description="folder of prompt sets; seeded with the shipped ones at the first start",
    )
    read_only: bool = Field(
        default=False, description="never write into the store: no seeding, no activation over HTTP"
    )
    poll_seconds: Seconds = Field(default=0.5, description="how often the pointers are looked at")
    default_set: str = Field(default="handcrafted", description="the prompt set of a request that names none")
    witnesses: Path | None = Field(
        default=None,
        description="folder of probe reports: who falls for a witness that the served version withstands is "
        "refused",
    )


class EncoderSettings(_Section):
    backend: Literal["torch", "onnx"] = Field(
        default="torch", description="what encodes the pictures of /classify; gradients always run in torch"
    )
    path: Path | None = Field(
        default=None, description="exported image tower, written if absent; default var/onnx/FINGERPRINT.onnx"
    )


class DefenseSettings(_Section):
    default: str = Field(
        default="none", description='the chain that "default" means, like jpeg:75,bit_depth:4'
    )


class LimitSettings(_Section):
    body_bytes: Count = Field(default=64 * 2**20, description="a request's body, counted while it is read")
    body_seconds: Seconds = Field(
        default=15.0, description="time for a body to arrive, and one second more for every 10 kB"
    )
    image_bytes: Count = Field(default=20 * 2**20, description="one encoded picture")
    images: Count = Field(default=32, description="pictures a request")
    labels: int = Field(default=2000, ge=2, description="labels a request")
    label_characters: Count = Field(default=256, description="characters a label")
    defenses: Count = Field(default=4, description="links of a defense chain")


class EngineSettings(_Section):
    threads: int = Field(
        default=0, ge=0, description="threads of a tower's computation; 0: the CPUs this process may use"
    )
    decode_threads: int = Field(
        default=0,
        ge=0,
        description="threads that decode pictures; 0: the CPUs this process may use, at least 2",
    )
    max_batch: Count = Field(default=32, description="pictures a pass through the image tower")
    queue_images: Count = Field(
        default=256, description="pictures accepted and not yet answered; beyond that 503"
    )
    label_cache_bytes: Count = Field(
        default=256 * 2**20, description="memory for the text features of label lists"
    )


class ProbeSettings(_Section):
    # For ten labels, with transfer, checks and self-test, the `standard` attack through a deterministic
    # defense may cost 5,100, `quick` through a randomized one 5,900, and the default attack through
    # `counterattack`, whose own passes count too, 13,600 (robustclip.probing.plan.charged_passes).
    charged_passes: Count = Field(
        default=16_000, description="cost of one report at most: forward passes and twice the backward ones"
    )
    queue: int = Field(default=8, ge=0, description="probes that may wait while one runs; beyond that 503")
    reports: Count = Field(default=16, description="prompt sets times defenses a request")
    labels: int = Field(default=256, ge=2, description="labels a probe")
    radius: RadiusSetting = Field(
        default=64 / 255, description="largest radius, Linf; for L2 that change of every value"
    )
    # Long enough for the default probe on a ViT-B/32 with two CPUs.
    report_seconds: Seconds = Field(
        default=60.0,
        description="deadline of a probe that names none: so long for each report, 120 seconds at most",
    )
    chunk_rows: Count = Field(
        default=4, description="rows of one gradient step before others may have the device"
    )
    job_charged_passes: Count = Field(
        default=50_000, description="cost of one report at most, where the probe is a job"
    )
    job_seconds: Seconds = Field(
        default=600.0, description="time of a job that names no deadline, from its start"
    )
    jobs: Count = Field(default=64, description="jobs that are remembered")
    job_result_seconds: Seconds = Field(default=900.0, description="how long the result of a job is kept")


class ServerSettings(_Section):
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    insecure_no_auth: bool = Field(
        default=False,
        description="accept an address that others can reach, although nobody has to show a key",
    )


class LogSettings(_Section):
    form: Literal["auto", "json", "console"] = Field(
        default="auto", description="log lines; auto: for people on a terminal, else JSON"
    )
    requests: bool = Field(default=True, description="a line for every request; errors are logged anyway")


class ServeSettings(BaseSettings):
    """All settings of `robustclip serve`. Unknown keys are refused, wherever they come from."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        nested_model_default_partial_update=True,
    )

    clip: ClipSettings = ClipSettings()
    store: StoreSettings = StoreSettings()
    encoder: EncoderSettings = EncoderSettings()
    defense: DefenseSettings = DefenseSettings()
    limits: LimitSettings = LimitSettings()
    engine: EngineSettings = EngineSettings()
    probe: ProbeSettings = ProbeSettings()
    server: ServerSettings = ServerSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _nobody_is_let_in_by_accident(self) -> Self:
        if not is_loopback(self.server.host) and not self.server.insecure_no_auth:
            raise ValueError(
                f"{self.server.host} can be reached from other machines and nobody has to show a key; if "
                f"that is meant, add --insecure-no-auth"
            )
        return self

    @model_validator(mode="after")
    def _one_request_fits_the_queue(self) -> Self:
        if self.engine.queue_images < self.limits.images:
            raise ValueError(
                f"engine.queue_images ({self.engine.queue_images}) is below limits.images "
                f"({self.limits.images})"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, CONFIG_FILE)


def load_settings(overrides: Mapping[str, Mapping[str, Any]] | None = None) -> ServeSettings:
    """The settings of this process. `overrides` ({section: {field: value}}) win over all else.

    Raises InvalidInput that names the setting at fault.
    """
    refuse_unknown_environment(os.environ)
    try:
        return ServeSettings(**(overrides or {}))  # pyright: ignore[reportArgumentType] - validated by the call itself
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(
            f"{message}, found {first['input']!r:.60}." if field else f"{message}.",
            field=field or None,
            help=_nearest(field),
        ) from error
    except SettingsError as error:
        raise InvalidInput(f"{error}.", help="Set single fields, like ROBUSTCLIP_CLIP__ARCH=mini.") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"not valid TOML: {error}.", field=str(CONFIG_FILE)) from error


def each_setting() -> Iterator[tuple[str, str, FieldInfo]]:
    """Every setting as (section, field, description and default)."""
    for section, info in ServeSettings.model_fields.items():
        model = info.annotation
        assert isinstance(model, type)
        assert issubclass(model, _Section)
        for field, described in model.model_fields.items():
            yield section, field, described


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def environment_name(section: str, field: str) -> str:
    return f"{PREFIX}{section}__{field}".upper()


def refuse_unknown_environment(environment: Mapping[str, str]) -> None:
    """Raise InvalidInput for a variable with our prefix that is no setting: it may be misspelt."""
    known = [environment_name(section, field) for section, field, _ in each_setting()]
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
            raise InvalidInput(
                "no such setting.",
                field=name,
                help=f"Did you mean {near[0]}?" if near else "`robustclip serve --help` lists all.",
            )


def _nearest(field: str) -> str | None:
    known = [f"{section}.{name}" for section, name, _ in each_setting()]
    if field in known:
        return None
    if field and "." not in field:
        return (
            f"The sections are {', '.join(ServeSettings.model_fields)}: settings of the service and of "
            f"nothing else."
        )
    near = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]}?" if near else None
