"""What is served: one immutable snapshot, replaced as a whole. A request reads it once, so that no answer
mixes two versions.

A set is added after it was read, verified, tried and warmed, which no request waits for. A refused set is
remembered with its reason, and the set that was served before stays.
"""

import contextlib
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from prompts_store.codec import MAX_BYTES
from prompts_store.files import read_bounded
from prompts_store.manifest import Ref
from prompts_store.shelf import ANY, Shelf
from prompts_store.store import PromptStore
from robustclip.errors import PromptSetRefused, RobustClipError, UnknownPromptSet
from robustclip.models.clip import Clip
from service.gate import Gate, open_gate
from service.loaded import LoadedSet
from service.metrics import Metrics
from service.problems import Problem

PINNED_SETS = 8  # versions that stay in memory after a request named them, beside the active ones

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A version that its pointer names and that is not served."""

    ref: Ref
    reason: str
    message: str
    files: object = None  # state of the store's files at that time: unchanged files are not read again


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The sets that are served, by name, and the refused versions that should have replaced them."""

    generation: int = 0
    active: Mapping[str, LoadedSet] = field(default_factory=dict[str, LoadedSet])
    refused: Mapping[str, Refusal] = field(default_factory=dict[str, Refusal])

    def named(self, name: str) -> LoadedSet:
        """The active set of that name. Raises UnknownPromptSet, or PromptSetRefused if there is one and none
        of its versions could be served.
        """
        if name in self.active:
            return self.active[name]
        if name in self.refused:
            refusal = self.refused[name]
            raise PromptSetRefused(refusal.message, reason=refusal.reason, field="prompt_set")
        raise UnknownPromptSet(
            f"no prompt set {name!r} is served.",
            field="prompt_set",
            help=f"Served: {', '.join(sorted(self.active))}.",
        )


class ServedSets:
    """Keeps the snapshot in step with a store.

    `admit` tries and warms a set before it is served, or raises PromptSetRefused; `gate` compares it with the
    version that it would replace. A rollback passes no gate, so that an operator can always go back.
    """

    def __init__(
        self,
        store: PromptStore,
        clip: Clip,
        admit: Callable[[LoadedSet], None],
        metrics: Metrics,
        gate: Gate = open_gate,
    ) -> None:
        self.store = store
        self._clip = clip
        self._admit = admit
        self._gate = gate
        self._metrics = metrics
        self._changing = threading.RLock()
        self._pinned: OrderedDict[Ref, LoadedSet] = OrderedDict()
        self.snapshot = Snapshot()

    def follow(self, pointers: Mapping[str, Ref]) -> bool:
        """Serve what the pointers name now. A set that can't be served is refused, and the old one stays.

        Returns whether all that the pointers name is served. If not, call again: a file may arrive after its
        pointer.
        """
        with self._changing:
            before = self.snapshot
            active, refused = dict(before.active), dict[str, Refusal]()
            for name, ref in pointers.items():
                if name in active and active[name].ref == ref:
                    continue
                known, files = before.refused.get(name), self._files(ref)
                if known is not None and (known.ref, known.files) == (ref, files):
                    refused[name] = known
                    continue
                try:
                    loaded = self._load(ref, before.generation + 1)
                    self._gate(loaded, active.get(name))
                    active[name] = loaded
                except (RobustClipError, OSError) as error:
                    refused[name] = self._refuse(ref, error, files)
                    fallback = None if name in active else self._previous(name, before.generation + 1)
                    if fallback is not None:
                        active[name] = fallback
            for name in active.keys() - pointers.keys():
                refused[name] = Refusal(
                    Ref(name), "no-pointer", "its pointer is gone or damaged; what was served goes on."
                )
            if active != before.active or refused != before.refused:
                self._replace(active, refused)
            return not refused

    def find(self, ref: Ref) -> LoadedSet | None:
        """The set, or None for a pinned version that must be read first. Raises as `Snapshot.named`."""
        if not ref.pinned:
            return self.snapshot.named(ref.name)
        current = self.snapshot.active.get(ref.name)
        return current if current is not None and current.ref == ref else self._pinned.get(ref)

    def fetch(self, ref: Ref) -> LoadedSet:
        """The set, read from the store if need be. Blocks; raises what `PromptStore.load` raises."""
        with self._changing:
            found = self.find(ref)
            if found is None:
                found = self._pinned[ref] = self._load(ref, self.snapshot.generation)
            if ref in self._pinned:
                self._pinned.move_to_end(ref)
            while len(self._pinned) > PINNED_SETS:
                self._pinned.popitem(last=False)
            return found

    def activate(self, ref: Ref, *, if_match: str | None, force: bool = False) -> LoadedSet:
        """Serve a pinned version and move the store's pointer to it. Blocks; `force` skips the gate.

        Raises PromptSetRefused and GateFailed before anything moved, `etag-mismatch` if `if_match` is given
        and another version is active meanwhile.
        """
        with self._changing:
            self._check_match(ref.name, if_match)
            loaded = self._load(ref, self.snapshot.generation + 1)
            if not force:
                self._gate(loaded, self.snapshot.active.get(ref.name))
            self.store.activate(ref, self._clip.fingerprint)
            return self._serve(loaded)

    def rollback(self, name: str, *, if_match: str | None) -> LoadedSet:
        """Serve the version that was active before, and swap the store's pointer. Blocks; raises
        NothingToRollBack and as `activate`.
        """
        with self._changing:
            self._check_match(name, if_match)
            pointer = self.store.pointer(name, self._clip.fingerprint)
            if pointer is None or pointer.previous is None:
                self.store.rollback(name, self._clip.fingerprint)  # says why there is nothing to return to
            else:
                loaded = self._load(Ref(name, pointer.previous), self.snapshot.generation + 1)
                if self.store.rollback(name, self._clip.fingerprint) == loaded.ref:
                    return self._serve(loaded)
            raise Problem("etag-mismatch", f"another process moved the pointer of {name!r} meanwhile.")

    def _load(self, ref: Ref, generation: int) -> LoadedSet:
        try:
            loaded = LoadedSet.of(self.store.load(ref, self._clip), self._clip.device, generation)
            self._admit(loaded)
        except (RobustClipError, OSError) as error:
            self._metrics.loads.labels(_reason(error)).inc()
            raise
        self._metrics.loads.labels("ok").inc()
        return loaded

    def _serve(self, loaded: LoadedSet) -> LoadedSet:
        name = loaded.ref.name
        refused = {other: refusal for other, refusal in self.snapshot.refused.items() if other != name}
        self._replace({**self.snapshot.active, name: loaded}, refused)
        return loaded

    def _replace(self, active: Mapping[str, LoadedSet], refused: Mapping[str, Refusal]) -> None:
        before = self.snapshot
        self.snapshot = replace(before, generation=before.generation + 1, active=active, refused=refused)
        self._metrics.serving([loaded.prompt_set for loaded in active.values()], self.snapshot.generation)
        for name, loaded in active.items():
            if before.active.get(name) is not loaded:
                self._metrics.activations.labels("ok").inc()
                _log.info("serving %s", loaded.ref)

    def _refuse(self, ref: Ref, error: RobustClipError | OSError, files: object) -> Refusal:
        message = (
            error.message
            if isinstance(error, RobustClipError)
            else f"its file can't be read: {error.strerror}."
        )
        refusal = Refusal(ref, _reason(error), message, files)
        self._metrics.activations.labels(refusal.reason).inc()
        _log.error(
            "%s is refused (%s): %s What was served before goes on.", ref, refusal.reason, refusal.message
        )
        return refusal

    def _files(self, ref: Ref) -> object:
        """A value that changes whenever a version's file does.

        The content counts, too: a repair in place may keep inode, size and time, and then the file would stay
        refused. Only files that are not served are read at each poll, and a prompt set is small.
        """
        seen: list[tuple[int, int, int, str]] = []
        for place in (self._clip.fingerprint[:8], ANY):
            path = Shelf(self.store.root / place / ref.name).file(ref.version)
            with contextlib.suppress(OSError):
                status = path.stat()
                try:
                    content = hashlib.sha256(read_bounded(path, MAX_BYTES)).hexdigest()
                except PromptSetRefused as error:
                    content = error.message
                seen.append((status.st_ino, status.st_size, status.st_mtime_ns, content))
        return tuple(seen)

    def _previous(self, name: str, generation: int) -> LoadedSet | None:
        """The version before a refused one, for the start, when nothing is served yet."""
        try:
            pointer = self.store.pointer(name, self._clip.fingerprint)
            return (
                None
                if pointer is None or pointer.previous is None
                else self._load(Ref(name, pointer.previous), generation)
            )
        except (RobustClipError, OSError):
            return None

    def _check_match(self, name: str, if_match: str | None) -> None:
        if if_match is None or if_match.strip() == "*":
            return
        current = self.snapshot.active.get(name)
        tags = {tag.strip().removeprefix("W/") for tag in if_match.split(",")}
        if current is None or current.etag not in tags:
            now = "nothing" if current is None else current.etag
            raise Problem(
                "etag-mismatch",
                f"expected {if_match[:80]}, found {now} active.",
                headers={} if current is None else {"ETag": current.etag},
            )


def _reason(error: RobustClipError | OSError) -> str:
    if isinstance(error, OSError):
        return "unreadable"
    return error.reason if isinstance(error, PromptSetRefused) else error.code
