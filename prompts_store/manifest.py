"""What a prompt set is: manifest, tensors, and the version that follows from both. The norm is FORMAT.md."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints
from torch import Tensor

from robustclip.digests import canonical_json
from robustclip.errors import InvalidInput
from robustclip.models import Clip, Prompts, meanings

FORMAT_VERSION = 1
ACTIVE = "active"
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,63}$"
VERSION_PATTERN = r"^[0-9a-f]{12}$"
FINGERPRINT_PATTERN = r"^[0-9a-f]{64}$"


def _with_kind(parameters: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if not isinstance(parameters.get("kind"), str):
        raise ValueError("expected a text under `kind`")
    return parameters


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
# An attack or objective with its parameters: {"kind": "pgd", "steps": 10, ...}.
KindData = Annotated[dict[str, JsonValue], AfterValidator(_with_kind)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClipIdentity(_Data):
    """The CLIP that the tensors were learned on; only the fingerprint decides whether another CLIP fits."""

    arch: str
    pretrained: str
    fingerprint: Annotated[str, StringConstraints(pattern=FINGERPRINT_PATTERN)]

    @classmethod
    def of(cls, clip: Clip) -> "ClipIdentity":
        return cls(arch=clip.arch, pretrained=clip.pretrained, fingerprint=clip.fingerprint)


class Result(_Data):
    """One measured accuracy in [0, 1] with its interval, and the attack that measured it.

    For clean pictures `attack` is None and `eps` is "0".
    """

    data: str
    split: str
    threat: str
    eps: str
    n: int = Field(ge=1)
    accuracy: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    attack: KindData | None = None
    seed: int


class PromptManifest(_Data):
    """Everything about a prompt set but its tensors.

    clip       None fits any CLIP, and is allowed only without tensors
    objective  how the prompts were learned, with all parameters
    attack     what training attacked with (None: nothing)
    labels     what the prompts were trained on; only if `class_specific` they bound their use
    """

    format_version: Literal[1] = FORMAT_VERSION
    name: Name
    objective: KindData
    clip: ClipIdentity | None = None
    templates: tuple[str, ...] = Field(min_length=1)
    class_specific: bool = False
    labels: tuple[str, ...] = ()
    dataset: str | None = None
    shots: int | None = Field(default=None, ge=1)
    attack: KindData | None = None
    results: tuple[Result, ...] = ()
    seed: int | None = None
    code_version: str
    created_at: AwareDatetime
    note: str = ""

    def canonical(self) -> str:
        """The one JSON text of these values: sorted keys, no spaces, ASCII."""
        return canonical_json(self.model_dump(mode="json"))


class Ref(NamedTuple):
    """A prompt set by name and version: 12 hex digits, or "active" for the store's pointer."""

    name: str
    version: str = ACTIVE

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def pinned(self) -> bool:
        return self.version != ACTIVE

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """From `name`, `name@active` or `name@3f9c21d07b1e`; InvalidInput for anything else, as for paths."""
        name, _, version = text.partition("@")
        if not re.fullmatch(NAME_PATTERN, name) or (
            version != ACTIVE and "@" in text and not re.fullmatch(VERSION_PATTERN, version)
        ):
            raise InvalidInput(
                f"expected NAME, NAME@active or NAME@VERSION, found {text[:80]!r}.",
                field="prompt_set",
                help="Names are small letters, digits and dashes (at most 64), versions 12 hex digits.",
            )
        return cls(name, version or ACTIVE)


@dataclass(frozen=True, eq=False)
class PromptSet:
    """Prompts with their manifest. Raises InvalidInput if the two contradict each other.

    `version` is the digest of the content: sets of the same version are the same set.
    """

    manifest: PromptManifest
    prompts: Prompts

    def __post_init__(self) -> None:
        manifest, prompts = self.manifest, self.prompts
        if (manifest.templates, manifest.class_specific) != (prompts.templates, prompts.class_specific):
            raise InvalidInput(
                "templates and class_specific of manifest and prompts differ.", field="manifest"
            )
        if manifest.clip is None and prompts.modalities:
            raise InvalidInput(
                "learned vectors belong to one CLIP.",
                field="manifest/clip",
                help="Name it, or leave the tensors out.",
            )
        if (
            manifest.class_specific
            and prompts.text is not None
            and prompts.text.shape[0] != len(manifest.labels)
        ):
            raise InvalidInput(
                f"class-specific text for {prompts.text.shape[0]} labels, found {len(manifest.labels)} "
                f"labels.",
                field="text_context",
            )

    def prompts_for(self, labels: tuple[str, ...]) -> Prompts:
        """The prompts in the order of `labels`.

        A set with one context a label knows only the labels that it was trained on, as
        `robustclip.models.labels.meanings` compares them: InvalidInput names another.
        """
        prompts = self.prompts
        if not prompts.class_specific or prompts.text is None:
            return prompts
        rows = meanings(labels, self.manifest.labels)
        for index, (label, meant) in enumerate(zip(labels, rows, strict=True)):
            if len(meant) != 1:
                alike = ", ".join(repr(self.manifest.labels[row]) for row in meant)
                raise InvalidInput(
                    f"{str(self.ref)!r} has no context for {label!r}"
                    + (f", which may mean {alike}." if alike else "."),
                    field=f"labels/{index}",
                    help="Use its training labels, or another set.",
                )
        return replace(prompts, text=prompts.text[[row for (row,) in rows]])

    @cached_property
    def version(self) -> str:
        state = hashlib.sha256(
            canonical_json(self.manifest.model_dump(mode="json", exclude={"created_at"})).encode()
        )
        for name, tensor in self.tensors():
            state.update(f"\n{name} F32 {canonical_json(list(tensor.shape))}\n".encode())
            state.update(tensor.numpy().astype("<f4", copy=False).tobytes())
        return state.hexdigest()[:12]

    @property
    def ref(self) -> Ref:
        return Ref(self.manifest.name, self.version)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors by their names in a file, in order of name: float32, contiguous, on the CPU."""
        for name, tensor in (("text_context", self.prompts.text), ("visual_context", self.prompts.visual)):
            if tensor is not None:
                yield name, tensor.detach().to("cpu", torch.float32).contiguous()
