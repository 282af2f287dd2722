"""A folder of prompt sets: immutable versions, one pointer a set. Publishing adds files, activating moves a
pointer, and nothing else ever changes.

<root>/<first 8 digits of the CLIP's fingerprint, or "any">/<name>/<version>.safetensors
                                                                  /ACTIVE    line 1 active, line 2 the one
                                                                             before
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from prompts_store.codec import MAX_BYTES, encode
from prompts_store.files import read_bounded, write_whole, writing
from prompts_store.manifest import FINGERPRINT_PATTERN, NAME_PATTERN, PromptManifest, PromptSet, Ref, Result
from prompts_store.results import joined
from prompts_store.shelf import ANY, Pointer, Shelf, StoredState, StoredVersion, StoreFinding, place_of
from robustclip.errors import (
    InvalidInput,
    NothingToRollBack,
    PromptSetRefused,
    StoreReadOnly,
    UnknownPromptSet,
    UnknownVersion,
)
from robustclip.models.clip import Clip

SHIPPED = Path(__file__).parent / "sets"  # read-only sets that come with the package, themselves a store
_PLACE_PATTERN = rf"^({ANY}|[0-9a-f]{{8}})$"
_NEVER = datetime.min.replace(tzinfo=UTC)


class PromptStore:
    """Prompt sets below `root`. Reading is safe while other processes write; writers wait for each other.

    `fingerprint` arguments say for which CLIP a question is asked, and are the whole of `Clip.fingerprint`. A
    set on a CLIP's own shelf wins over one of the same name under `any` as soon as one of its versions is
    active. Everything that writes raises StoreReadOnly on a store that was opened `read_only`, or whose file
    system refuses.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.root = Path(root)
        self.read_only = read_only

    def publish(self, prompt_set: PromptSet, *, report: bytes | None = None, activate: bool = False) -> Ref:
        """Store a set, and beside it the `report` page, which nothing here reads. The same content again
        changes nothing.

        Raises PromptSetRefused for what would be refused when read.
        """
        data = encode(prompt_set)
        shelf = self._shelf(place_of(prompt_set.manifest), prompt_set.manifest.name)
        self._refuse_if_read_only()
        with writing(self.root):
            if not shelf.intact(prompt_set.version):
                write_whole(shelf.file(prompt_set.version), data)
            if report is not None:
                write_whole(shelf.report(prompt_set.version), report)
            if activate:
                shelf.advance(prompt_set.version)
        return prompt_set.ref

    def copy(
        self,
        ref: str | Ref,
        clip: Clip,
        source: "PromptStore",
        *,
        name: str | None = None,
        results: Sequence[Result] = (),
        activate: bool = False,
    ) -> Ref:
        """Publish a set of another store, or of this one, here.

        Under another name, or with further `results`, it is another version. Under another name its note says
        of which set it is a copy. Its report is the same bytes: it tells how the first version was learned.

        Raises what `load`, `publish` and `activate` raise, InvalidInput for a name that breaks the rule and
        for results of a set that fits any CLIP.
        """
        original = source.load(ref, clip)
        manifest = original.manifest
        page = source._shelf(place_of(manifest), original.ref.name).report(original.version)
        report = read_bounded(page, MAX_BYTES) if page.exists() else None
        if results:
            manifest = _with_results(original, results)
        if name is not None and name != original.ref.name:
            note = " ".join(filter(None, [manifest.note, f"A copy of {original.ref}."]))
            manifest = manifest.model_copy(update={"name": _name(name), "note": note})
        published = self.publish(PromptSet(manifest, original.prompts), report=report)
        return self.activate(published, clip.fingerprint) if activate else published

    def load(self, ref: str | Ref, clip: Clip) -> PromptSet:
        """The set that `name`, `name@active` or `name@3f9c21d07b1e` means for a CLIP, fully checked.

        Raises InvalidInput, UnknownPromptSet, UnknownVersion, or PromptSetRefused (`foreign-fingerprint` if
        only other CLIPs have it).
        """
        ref = _parsed(ref)
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
        except FileNotFoundError as error:  # removed between the two looks
            raise _unknown_version(ref) from error

    def activate(self, ref: str | Ref, fingerprint: str) -> Ref:
        """Move the pointer to a pinned version, which must be readable; the one before becomes what
        `rollback` returns to.
        """
        ref = _parsed(ref)
        if not ref.pinned:
            raise InvalidInput(
                f"expected {ref.name}@VERSION, found {ref}.",
                field="version",
                help="Name the version to activate.",
            )
        self._refuse_if_read_only()
        with writing(self.root):
            shelf = self._holding_shelf(ref, fingerprint)
            if shelf.place == ANY and self._shelf(_place(fingerprint), ref.name).has_pointer():
                raise InvalidInput(
                    f"{ref.name!r} has an active version of this CLIP's own, which wins over {ref}.",
                    field="version",
                )
            shelf.read(ref.version)
            shelf.advance(ref.version)
        return ref

    def rollback(self, name: str, fingerprint: str) -> Ref:
        """Swap the active version and the one before; twice is where it began. Raises NothingToRollBack if
        there is none before.
        """
        self._refuse_if_read_only()
        with writing(self.root):
            self._refuse_unless_known(name, fingerprint)
            shelf = self._pointing_shelf(name, fingerprint)
            pointer = shelf.pointer() if shelf else None
            if shelf is None or pointer is None or pointer.previous is None:
                raise NothingToRollBack(
                    f"{name!r} has had no other active version.",
                    field="prompt_set",
                    help="Activate a version by name.",
                )
            before = Ref(name, pointer.previous)
            self._holding_shelf(before, fingerprint).read(before.version)
            shelf.point(Pointer(pointer.previous, pointer.active))
        return before

    def active(self, fingerprint: str) -> dict[str, Ref]:
        """What the pointers say for a CLIP, the sets themselves unread. A damaged pointer is left out;
        `verify` shows it.
        """
        found: dict[str, Ref] = {}
        for name in self.names(fingerprint):
            try:
                pointer = self.pointer(name, fingerprint)
            except PromptSetRefused:
                continue
            if pointer is not None:
                found[name] = Ref(name, pointer.active)
        return found

    def pointer(self, name: str, fingerprint: str) -> Pointer | None:
        """The active version of a set and the one before it. Raises PromptSetRefused (`bad-pointer`)."""
        shelf = self._pointing_shelf(name, fingerprint)
        return shelf.pointer() if shelf else None

    def names(self, fingerprint: str | None = None) -> list[str]:
        """The sets that a CLIP can use; without a fingerprint those of all CLIPs."""
        places = None if fingerprint is None else (_place(fingerprint), ANY)
        shelves = (shelf for shelf in self._shelves() if places is None or shelf.place in places)
        return sorted(
            {shelf.name for shelf in shelves if shelf.has_pointer() or shelf.versions()}
        )  # a killed publisher may leave an empty folder

    def versions(self, name: str, fingerprint: str) -> list[StoredVersion]:
        """All versions of a set, newest first, each read and verified; those of other CLIPs have the state
        `other-backbone`.
        """
        found: list[StoredVersion] = []
        pointing = self._pointing_shelf(name, fingerprint)
        for shelf in self._shelves(name):
            active = self.active(fingerprint).get(name) if shelf == pointing else None
            usable = shelf.place in (_place(fingerprint), ANY)
            for version in shelf.versions():
                state: StoredState = (
                    "other-backbone"
                    if not usable
                    else "active"
                    if active is not None and version == active.version
                    else "available"
                )
                found += shelf.inspect(version, state=state)
        if not found:
            raise self._unknown(name)
        return sorted(found, key=_age, reverse=True)

    def seed_from(self, shipped: Path) -> list[Ref]:
        """Copy the sets of another store that are absent here, and its pointers where there is none yet; the
        versions that were added.
        """
        self._refuse_if_read_only()
        added: list[Ref] = []
        with writing(self.root):
            for source in PromptStore(shipped)._shelves():
                shelf = self._shelf(source.place, source.name)
                for version in source.versions():
                    if not shelf.intact(version):
                        write_whole(shelf.file(version), encode(source.read(version)))
                        added.append(Ref(source.name, version))
                pointer = source.pointer()
                if pointer is not None and not shelf.has_pointer():
                    shelf.point(pointer)
        return added

    def prune(self, name: str, fingerprint: str, *, keep: int = 3) -> list[Ref]:
        """Remove all versions but the newest `keep`, the active one and the one before; the versions that
        were removed.

        What can't be read stays: it may belong to a newer format.
        """
        if keep < 0:
            raise InvalidInput(f"expected 0 or more, found {keep}.", field="--keep")
        self._refuse_if_read_only()
        removed: list[Ref] = []
        with writing(self.root):
            self._refuse_unless_known(name, fingerprint)
            for shelf in (self._shelf(_place(fingerprint), name), self._shelf(ANY, name)):
                protected = shelf.pointer() or ()
                stored_here = [stored for version in shelf.versions() for stored in shelf.inspect(version)]
                for stored in sorted(stored_here, key=_age, reverse=True)[keep:]:
                    if stored.state != "refused" and stored.ref.version not in protected:
                        stored.path.unlink()
                        shelf.report(stored.ref.version).unlink(missing_ok=True)
                        removed.append(stored.ref)
        return removed

    def verify(self, clip: Clip | None = None) -> list[StoreFinding]:
        """Read everything: versions that would be refused, pointers to nothing. With a CLIP, its own sets
        must also fit its towers.
        """
        usable = () if clip is None else (_place(clip.fingerprint), ANY)
        return [
            finding
            for shelf in self._shelves()
            for finding in shelf.findings(clip if shelf.place in usable else None)
        ]

    def _shelf(self, place: str, name: str) -> Shelf:
        return Shelf(self.root / place / _name(name))

    def _shelves(self, name: str | None = None) -> Iterator[Shelf]:
        """Every folder that is a shelf by its path, in order; whatever else lies in the root is none of
        ours.
        """
        for path in sorted(self.root.glob(f"*/{'*' if name is None else _name(name)}/")):
            if re.fullmatch(_PLACE_PATTERN, path.parent.name) and re.fullmatch(NAME_PATTERN, path.name):
                yield Shelf(path)

    def _pointing_shelf(self, name: str, fingerprint: str) -> Shelf | None:
        """The shelf whose pointer counts for this CLIP: its own before `any`."""
        shelves = (self._shelf(_place(fingerprint), name), self._shelf(ANY, name))
        return next((shelf for shelf in shelves if shelf.has_pointer()), None)

    def _holding_shelf(self, ref: Ref, fingerprint: str) -> Shelf:
        """The shelf with the file of a pinned version that this CLIP can use."""
        for place in (_place(fingerprint), ANY):
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
        if not {_place(fingerprint), ANY} & set(places):
            raise _foreign(Ref(name), fingerprint)

    def _unknown(self, name: str) -> UnknownPromptSet:
        known = ", ".join(self.names()) or "none yet"
        return UnknownPromptSet(
            f"there is no prompt set {name!r}.", field="prompt_set", help=f"Known: {known}."
        )

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            raise StoreReadOnly(
                f"{self.root} was opened for reading only.",
                field="--store",
                help="Write where the store is mounted writable.",
            )


def _parsed(ref: str | Ref) -> Ref:
    """A checked reference: nothing that reaches the file system has a slash or a dot in it."""
    return Ref.parse(str(ref))


def _name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(
            f"expected small letters, digits and dashes, at most 64, found {name[:80]!r}.", field="prompt_set"
        )
    return name


def _place(fingerprint: str) -> str:
    if not re.fullmatch(FINGERPRINT_PATTERN, fingerprint):
        raise InvalidInput(f"expected 64 hex digits, found {fingerprint[:80]!r}.", field="fingerprint")
    return fingerprint[:8]


def _age(stored: StoredVersion) -> tuple[datetime, str]:
    """Sorts by creation; what can't be read is oldest."""
    return stored.created_at or _NEVER, stored.ref.version


def _with_results(prompt_set: PromptSet, results: Sequence[Result]) -> PromptManifest:
    if prompt_set.manifest.clip is None:
        raise InvalidInput(
            f"{prompt_set.ref} fits any CLIP: its manifest can't say on which it was measured.",
            field="--results",
            help="Leave it out.",
        )
    return prompt_set.manifest.model_copy(update={"results": joined(prompt_set.manifest.results, results)})


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
