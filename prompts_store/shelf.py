"""One prompt set's folder: its immutable versions, and the pointer to the active one, which alone changes."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from prompts_store.codec import MAX_BYTES, decode, foreign
from prompts_store.files import read_bounded, write_whole
from prompts_store.manifest import VERSION_PATTERN, PromptManifest, PromptSet, Ref
from robustclip.errors import PromptSetRefused
from robustclip.models import Clip

ANY = "any"  # the place of sets without tensors (words only): they fit every CLIP
POINTER = "ACTIVE"
SUFFIX = ".safetensors"
REPORT_SUFFIX = ".html"  # how a version was learned, for people; no program reads it
_POINTER_BYTES = 64  # two lines of 12 digits, with line ends of any system

StoredState: TypeAlias = Literal["active", "available", "refused", "other-backbone"]


class Pointer(NamedTuple):
    """The active version, and the one that a rollback returns to."""

    active: str
    previous: str | None = None


@dataclass(frozen=True)
class StoredVersion:
    """A version in a store, `shapes` by tensor name.

    If it is refused, `reason` and `message` say why and there is no manifest.
    """

    ref: Ref
    state: StoredState
    path: Path
    bytes: int
    created_at: datetime | None = None
    manifest: PromptManifest | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    reason: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class StoreFinding:
    """A file that will not be served: its path below the root, the refusal's code, the explanation."""

    path: str
    reason: str
    message: str


@dataclass(frozen=True)
class Shelf:
    """`<place>/<name>/`; the place is eight digits of a CLIP's fingerprint, or `any`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def place(self) -> str:
        return self.path.parent.name

    def file(self, version: str) -> Path:
        return self.path / f"{version}{SUFFIX}"

    def report(self, version: str) -> Path:
        """The page that says how a version was learned; it may not exist."""
        return self.path / f"{version}{REPORT_SUFFIX}"

    def versions(self) -> list[str]:
        """The versions on this shelf, by file name, without reading them."""
        return sorted(
            path.stem for path in self.path.glob(f"*{SUFFIX}") if re.fullmatch(VERSION_PATTERN, path.stem)
        )

    def has(self, version: str) -> bool:
        return os.path.lexists(self.file(version))

    def has_pointer(self) -> bool:
        return os.path.lexists(self.path / POINTER)

    def read(self, version: str, *, clip: Clip | None = None) -> PromptSet:
        """A version, checked against its file name and folder. FileNotFoundError or PromptSetRefused."""
        prompt_set = decode(read_bounded(self.file(version), MAX_BYTES), clip=clip)
        if prompt_set.version != version:
            raise PromptSetRefused(
                f"the file is named {version}, its content is {prompt_set.version}.",
                reason="digest-mismatch",
                field=self.file(version).name,
                help="It was changed or damaged after it was published: publish it again.",
            )
        if prompt_set.manifest.name != self.name:
            raise PromptSetRefused(
                f"{prompt_set.manifest.name!r} lies in the folder of {self.name!r}.",
                reason="bad-name",
                field="manifest/name",
            )
        if place_of(prompt_set.manifest) != self.place:
            raise foreign(prompt_set.manifest, self.place)
        return prompt_set

    def intact(self, version: str) -> bool:
        """Whether a version exists and can be read."""
        try:
            self.read(version)
        except (FileNotFoundError, PromptSetRefused):
            return False
        return True

    def inspect(self, version: str, *, state: StoredState = "available") -> Iterator[StoredVersion]:
        """A version with everything known about it; nothing if it has been removed meanwhile.

        The state is `refused` if it can't be read.
        """
        path, ref = self.file(version), Ref(self.name, version)
        with contextlib.suppress(FileNotFoundError):
            size = path.lstat().st_size
            try:
                prompt_set = self.read(version)
            except PromptSetRefused as error:
                yield StoredVersion(ref, "refused", path, size, reason=error.reason, message=str(error))
            else:
                manifest = prompt_set.manifest
                shapes = {name: tuple(tensor.shape) for name, tensor in prompt_set.tensors()}
                yield StoredVersion(ref, state, path, size, manifest.created_at, manifest, shapes)

    def findings(self, clip: Clip | None) -> Iterator[StoreFinding]:
        """What is wrong here; with a CLIP also what does not fit its towers."""
        below = f"{self.place}/{self.name}"
        for version in self.versions():
            try:
                self.read(version, clip=clip)
            except FileNotFoundError:  # pruned meanwhile
                continue
            except PromptSetRefused as error:
                yield StoreFinding(f"{below}/{version}{SUFFIX}", error.reason, str(error))
        try:
            pointer = self.pointer()
        except PromptSetRefused as error:
            yield StoreFinding(f"{below}/{POINTER}", error.reason, str(error))
        else:
            for version in pointer or ():
                if version is not None and not self.file(version).exists():
                    yield StoreFinding(
                        f"{below}/{POINTER}", "dangling-pointer", f"it names {version}, which is not there."
                    )

    def pointer(self) -> Pointer | None:
        """What is active here, None if nothing ever was. PromptSetRefused (`bad-pointer`) if damaged."""
        try:
            lines = (
                read_bounded(self.path / POINTER, _POINTER_BYTES).decode("ascii", errors="replace").split()
            )
        except FileNotFoundError:
            return None
        if not 1 <= len(lines) <= 2 or not all(re.fullmatch(VERSION_PATTERN, line) for line in lines):
            raise PromptSetRefused(
                f"{POINTER} of {self.name!r} names no version.",
                reason="bad-pointer",
                field=POINTER,
                help="Activate a version: this writes it again.",
            )
        return Pointer(*lines)

    def point(self, pointer: Pointer) -> None:
        """Replace the pointer in one step."""
        write_whole(self.path / POINTER, "".join(f"{line}\n" for line in pointer if line).encode())

    def advance(self, version: str) -> None:
        """Make a version active and remember the one before; behind a damaged pointer there is none."""
        try:
            current = self.pointer()
        except PromptSetRefused:
            current = None
        if current is None or current.active != version:
            self.point(Pointer(version, current.active if current else None))


def place_of(manifest: PromptManifest) -> str:
    """The folder below a store's root where a set belongs."""
    return ANY if manifest.clip is None else manifest.clip.fingerprint[:8]
