"""A folder of prompt sets with immutable versions and one pointer for each set.

Publishing adds files, activating moves a pointer, and nothing else changes.

<root>/<first 8 digits of the CLIP's fingerprint, or "any">/<name>/<version>.safetensors
                                                                  /ACTIVE    line 1: active version
                                                                             line 2: the one before
"""

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path

from prompts_store.catalogue import Catalogue, age, checked_name, place_for
from prompts_store.codec import MAX_BYTES, decode, encode
from prompts_store.files import read_bounded, write_whole, writing
from prompts_store.manifest import PromptManifest, PromptSet, Ref, Result
from prompts_store.results import joined
from prompts_store.shelf import ANY, Pointer, place_of
from robustclip.errors import InvalidInput, NothingToRollBack, StoreReadOnly
from robustclip.models import Clip

SHIPPED = Path(__file__).parent / "sets"  # read-only sets that come with the package, themselves a store


class PromptStore(Catalogue):
    """The prompt sets below `root`. Writers wait for each other.

    All methods that write raise StoreReadOnly if the store was opened `read_only`, or its file system
    refuses, StoreBusy if another writer goes on for too long, and StoreFull.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        super().__init__(root)
        self.read_only = read_only

    def publish(self, prompt_set: PromptSet, *, report: bytes | None = None, activate: bool = False) -> Ref:
        """Store a set, and beside it the `report` page, which nothing here reads. The same content again
        changes nothing.

        Raises PromptSetRefused for a set that would be refused when read.
        """
        data = encode(prompt_set)
        shelf = self._shelf(place_of(prompt_set.manifest), prompt_set.manifest.name)
        with self._writing():
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

        Raises what `load`, `publish` and `activate` raise, and InvalidInput for a wrong name and for results
        of a set that fits any CLIP.
        """
        original = source.load(ref, clip)
        manifest = original.manifest
        page = source._shelf(place_of(manifest), original.ref.name).report(original.version)
        report = read_bounded(page, MAX_BYTES) if page.exists() else None
        if results:
            manifest = _with_results(original, results)
        if name is not None and name != original.ref.name:
            note = " ".join(filter(None, [manifest.note, f"A copy of {original.ref}."]))
            manifest = manifest.model_copy(update={"name": checked_name(name), "note": note})
        published = self.publish(PromptSet(manifest, original.prompts), report=report)
        return self.activate(published, clip.fingerprint) if activate else published

    def activate(self, ref: str | Ref, fingerprint: str) -> Ref:
        """Move the pointer to a pinned, readable version. `rollback` returns to the one before."""
        ref = Ref.parse(str(ref))
        if not ref.pinned:
            raise InvalidInput(
                f"expected {ref.name}@VERSION, found {ref}.",
                field="version",
                help="Name the version to activate.",
            )
        with self._writing():
            shelf = self._holding_shelf(ref, fingerprint)
            if shelf.place == ANY and self._shelf(place_for(fingerprint), ref.name).has_pointer():
                raise InvalidInput(
                    f"{ref.name!r} has an active version of this CLIP's own, which wins over {ref}.",
                    field="version",
                )
            shelf.read(ref.version)
            shelf.advance(ref.version)
        return ref

    def rollback(self, name: str, fingerprint: str) -> Ref:
        """Swap the active version and the one before. NothingToRollBack if there is none."""
        with self._writing():
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

    def seed_from(self, shipped: Path) -> list[Ref]:
        """Copy what another store has and this one lacks, sets and pointers; returns the added versions."""
        added: list[Ref] = []
        with self._writing():
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
        """Remove all versions but the newest `keep`, the active one and the one before; returns those.

        Unreadable versions stay: they may have a newer format.
        """
        if keep < 0:
            raise InvalidInput(f"expected 0 or more, found {keep}.", field="--keep")
        removed: list[Ref] = []
        with self._writing():
            self._refuse_unless_known(name, fingerprint)
            for shelf in (self._shelf(place_for(fingerprint), name), self._shelf(ANY, name)):
                protected = shelf.pointer() or ()
                stored_here = [stored for version in shelf.versions() for stored in shelf.inspect(version)]
                for stored in sorted(stored_here, key=age, reverse=True)[keep:]:
                    if stored.state != "refused" and stored.ref.version not in protected:
                        stored.path.unlink()
                        shelf.report(stored.ref.version).unlink(missing_ok=True)
                        removed.append(stored.ref)
        return removed

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        """Hold the writer's lock. StoreReadOnly if the store was opened read-only, or its file system is."""
        if self.read_only:
            raise StoreReadOnly(
                f"{self.root} was opened for reading only.",
                field="--store",
                help="Write where the store is mounted writable.",
            )
        with writing(self.root):
            yield


def _with_results(prompt_set: PromptSet, results: Sequence[Result]) -> PromptManifest:
    if prompt_set.manifest.clip is None:
        raise InvalidInput(
            f"{prompt_set.ref} fits any CLIP: its manifest can't say on which it was measured.",
            field="--results",
            help="Leave it out.",
        )
    return prompt_set.manifest.model_copy(update={"results": joined(prompt_set.manifest.results, results)})


def load_prompts(source: str | Path, clip: Clip) -> PromptSet:
    """A shipped set by NAME or NAME@VERSION, or the set in a .safetensors file, checked for this CLIP.

    Raises as `PromptStore.load`; OSError for a file that can't be read.
    """
    path = Path(source)
    if path.suffix == ".safetensors":
        return decode(read_bounded(path, MAX_BYTES), clip=clip)
    return PromptStore(SHIPPED, read_only=True).load(str(source), clip)
