"""The reading side of a store: which version a name means for a CLIP, and what lies in the folders."""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from prompts_store.manifest import FINGERPRINT_PATTERN, NAME_PATTERN, PromptSet, Ref
from prompts_store.shelf import ANY, Pointer, Shelf, StoredState, StoredVersion, StoreFinding
from robustclip.errors import InvalidInput, PromptSetRefused, UnknownPromptSet, UnknownVersion
from robustclip.models import Clip

_PLACE_PATTERN = rf"^({ANY}|[0-9a-f]{{8}})$"
_NEVER = datetime.min.replace(tzinfo=UTC)


class Catalogue:
    """The prompt sets below `root`. Reading is safe while other processes write.

    `fingerprint` arguments are the whole `Clip.fingerprint` of the CLIP to serve. A set in that CLIP's own
    folder wins over one of the same name under `any` as soon as one of its versions is active.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def load(self, ref: str | Ref, clip: Clip) -> PromptSet:
        """The set that `name`, `name@active` or `name@3f9c21d07b1e` means for a CLIP, fully checked.

        Raises InvalidInput, UnknownPromptSet, UnknownVersion or PromptSetRefused (`foreign-fingerprint` if
        only other CLIPs have it).
        """
        ref = Ref.parse(str(ref))  # no slash or dot of a user reaches the file system
        if not ref.pinned:
            shelf = self._pointing_shelf(ref.name, clip.fingerprint)
            pointer = shelf.pointer() if shelf else None
            if pointer is None:
                self._refuse_unless_known(ref.name, clip.fingerprint)
                raise UnknownVersion(
                    f"no version of {ref.name!r} is active.",
                    field="prompt_set",
                    help="Activate one, or name a version.",
                )
            ref = Ref(ref.name, pointer.active)
        try:
            return self._holding_shelf(ref, clip.fingerprint).read(ref.version, clip=clip)
        except FileNotFoundError as error:  # removed since it was found
            raise _unknown_version(ref) from error

    def active(self, fingerprint: str) -> dict[str, Ref]:
        """What the pointers say for a CLIP, without reading the sets.

        Damaged pointers are left out; `verify` lists them.
        """
        refs: dict[str, Ref] = {}
        for name in self.names(fingerprint):
            with contextlib.suppress(PromptSetRefused):
                if pointer := self.pointer(name, fingerprint):
                    refs[name] = Ref(name, pointer.active)
        return refs

    def pointer(self, name: str, fingerprint: str) -> Pointer | None:
        """The active version of a set and the previous one. Raises PromptSetRefused (`bad-pointer`)."""
        shelf = self._pointing_shelf(name, fingerprint)
        return shelf.pointer() if shelf else None

    def names(self, fingerprint: str | None = None) -> list[str]:
        """The sets that a CLIP can use; without a fingerprint those of all CLIPs."""
        places = None if fingerprint is None else (place_for(fingerprint), ANY)
        shelves = (shelf for shelf in self._shelves() if places is None or shelf.place in places)
        return sorted(
            {shelf.name for shelf in shelves if shelf.has_pointer() or shelf.versions()}
        )  # a killed publisher may leave an empty folder

    def versions(self, name: str, fingerprint: str) -> list[StoredVersion]:
        """All versions of a set, newest first, each read and verified.

        Those of other CLIPs have the state `other-backbone`.
        """
        stored: list[StoredVersion] = []
        pointing = self._pointing_shelf(name, fingerprint)
        for shelf in self._shelves(name):
            active = self.active(fingerprint).get(name) if shelf == pointing else None
            usable = shelf.place in (place_for(fingerprint), ANY)
            for version in shelf.versions():
                state: StoredState = (
                    "other-backbone"
                    if not usable
                    else "active"
                    if active is not None and version == active.version
                    else "available"
                )
                stored += shelf.inspect(version, state=state)
        if not stored:
            raise self._unknown(name)
        return sorted(stored, key=age, reverse=True)

    def verify(self, clip: Clip | None = None) -> list[StoreFinding]:
        """Read everything and list versions that would be refused and pointers to nothing.

        With a CLIP, sets that it can use must also fit its towers.
        """
        usable = () if clip is None else (place_for(clip.fingerprint), ANY)
        return [
            finding
            for shelf in self._shelves()
            for finding in shelf.findings(clip if shelf.place in usable else None)
        ]

    def _shelf(self, place: str, name: str) -> Shelf:
        return Shelf(self.root / place / checked_name(name))

    def _shelves(self, name: str | None = None) -> Iterator[Shelf]:
        """Every folder whose path is that of a shelf, in order; all else in the root is ignored."""
        for path in sorted(self.root.glob(f"*/{'*' if name is None else checked_name(name)}/")):
            if re.fullmatch(_PLACE_PATTERN, path.parent.name) and re.fullmatch(NAME_PATTERN, path.name):
                yield Shelf(path)

    def _pointing_shelf(self, name: str, fingerprint: str) -> Shelf | None:
        """The shelf whose pointer counts for this CLIP: its own before `any`."""
        shelves = (self._shelf(place_for(fingerprint), name), self._shelf(ANY, name))
        return next((shelf for shelf in shelves if shelf.has_pointer()), None)

    def _holding_shelf(self, ref: Ref, fingerprint: str) -> Shelf:
        """The shelf with the file of a pinned version that this CLIP can use."""
        for place in (place_for(fingerprint), ANY):
            shelf = self._shelf(place, ref.name)
            if shelf.has(ref.version):
                return shelf
        if any(shelf.has(ref.version) for shelf in self._shelves(ref.name)):
            raise _foreign(ref, fingerprint)
        self._refuse_unless_known(ref.name, fingerprint)
        raise _unknown_version(ref)

    def _refuse_unless_known(self, name: str, fingerprint: str) -> None:
        places = [shelf.place for shelf in self._shelves(name)]
        if not places:
            raise self._unknown(name)
        if not {place_for(fingerprint), ANY} & set(places):
            raise _foreign(Ref(name), fingerprint)

    def _unknown(self, name: str) -> UnknownPromptSet:
        known = ", ".join(self.names()) or "none yet"
        return UnknownPromptSet(
            f"there is no prompt set {name!r}.", field="prompt_set", help=f"Known: {known}."
        )


def checked_name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(
            f"expected small letters, digits and dashes, at most 64, found {name[:80]!r}.", field="prompt_set"
        )
    return name


def place_for(fingerprint: str) -> str:
    if not re.fullmatch(FINGERPRINT_PATTERN, fingerprint):
        raise InvalidInput(f"expected 64 hex digits, found {fingerprint[:80]!r}.", field="fingerprint")
    return fingerprint[:8]


def age(stored: StoredVersion) -> tuple[datetime, str]:
    """Sorts by creation; unreadable versions are the oldest."""
    return stored.created_at or _NEVER, stored.ref.version


def _foreign(ref: Ref, fingerprint: str) -> PromptSetRefused:
    return PromptSetRefused(
        f"{ref} belongs to another CLIP than {fingerprint[:8]}.",
        reason="foreign-fingerprint",
        field="prompt_set",
        help="Train it on this CLIP.",
    )


def _unknown_version(ref: Ref) -> UnknownVersion:
    return UnknownVersion(
        f"there is no version {ref.version} of {ref.name!r}.",
        field="version",
        help="robustclip prompts list shows the versions.",
    )
