import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from prompt_sets import learned_set, template_set

from prompts_store.manifest import Ref, Result
from prompts_store.shelf import Pointer
from prompts_store.store import SHIPPED, PromptStore
from robustclip.errors import (
    InvalidInput,
    NothingToRollBack,
    PromptSetRefused,
    StoreBusy,
    StoreFull,
    StoreReadOnly,
    UnknownPromptSet,
    UnknownVersion,
)
from robustclip.models.clip import Clip

OTHER = "f" * 64  # the fingerprint of a CLIP that nobody has
CLEAN = Result(
    data="caltech-101",
    split="test",
    threat="clean",
    eps="0",
    n=256,
    accuracy=0.5,
    low=0.44,
    high=0.56,
    seed=0,
)


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "prompts")


def test_a_published_set_is_loaded_as_it_was(store: PromptStore, tiny: Clip) -> None:
    prompt_set = learned_set(tiny, visual=True)
    ref = store.publish(prompt_set, activate=True)
    for asked in ("demo", "demo@active", str(ref), ref):
        found = store.load(asked, tiny)
        assert (found.ref, found.manifest, found.prompts.digest()) == (
            ref,
            prompt_set.manifest,
            prompt_set.prompts.digest(),
        )


def test_publishing_twice_keeps_one_file(store: PromptStore, tiny: Clip) -> None:
    refs = {store.publish(learned_set(tiny)) for _ in range(2)}
    (stored,) = store.versions("demo", tiny.fingerprint)
    assert refs == {stored.ref}
    assert stored.path == store.root / tiny.fingerprint[:8] / "demo" / f"{stored.ref.version}.safetensors"


def test_publishing_alone_activates_nothing(store: PromptStore, tiny: Clip) -> None:
    store.publish(learned_set(tiny))
    assert store.active(tiny.fingerprint) == {}
    with pytest.raises(UnknownVersion, match="no version of 'demo' is active"):
        store.load("demo", tiny)


def test_the_pointer_remembers_one_version_before(store: PromptStore, tiny: Clip) -> None:
    one, two, three = (
        store.publish(learned_set(tiny, seed=seed), activate=True).version for seed in range(3)
    )
    assert store.pointer("demo", tiny.fingerprint) == Pointer(three, two)
    store.activate(Ref("demo", three), tiny.fingerprint)
    assert store.pointer("demo", tiny.fingerprint) == Pointer(three, two)
    store.activate(f"demo@{one}", tiny.fingerprint)
    assert (store.root / tiny.fingerprint[:8] / "demo" / "ACTIVE").read_text() == f"{one}\n{three}\n"


def test_rolling_back_twice_is_where_it_began(store: PromptStore, tiny: Clip) -> None:
    one, two = (store.publish(learned_set(tiny, seed=seed), activate=True) for seed in range(2))
    assert store.rollback("demo", tiny.fingerprint) == one
    assert store.active(tiny.fingerprint) == {"demo": one}
    assert store.rollback("demo", tiny.fingerprint) == two


def test_rolling_back_needs_a_version_before(store: PromptStore, tiny: Clip) -> None:
    store.publish(learned_set(tiny))
    with pytest.raises(NothingToRollBack):
        store.rollback("demo", tiny.fingerprint)
    store.publish(learned_set(tiny), activate=True)
    with pytest.raises(NothingToRollBack):
        store.rollback("demo", tiny.fingerprint)


def test_neither_activating_nor_rolling_back_moves_to_a_damaged_file(store: PromptStore, tiny: Clip) -> None:
    one, two = (store.publish(learned_set(tiny, seed=seed), activate=True) for seed in range(2))
    path = store.root / tiny.fingerprint[:8] / "demo" / f"{one.version}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PromptSetRefused):
        store.rollback("demo", tiny.fingerprint)
    with pytest.raises(PromptSetRefused):
        store.activate(one, tiny.fingerprint)
    assert store.active(tiny.fingerprint) == {"demo": two}


def test_only_a_version_can_be_activated(store: PromptStore, tiny: Clip) -> None:
    store.publish(learned_set(tiny))
    with pytest.raises(InvalidInput, match="expected demo@VERSION"):
        store.activate("demo", tiny.fingerprint)
    with pytest.raises(UnknownVersion):
        store.activate("demo@000000000000", tiny.fingerprint)


def test_unknown_sets_and_versions_are_named_with_what_is_known(store: PromptStore, tiny: Clip) -> None:
    with pytest.raises(UnknownPromptSet, match="none yet"):
        store.load("nobody", tiny)
    store.publish(learned_set(tiny))
    for ask in (
        lambda: store.load("nobody", tiny),
        lambda: store.versions("nobody", tiny.fingerprint),
        lambda: store.rollback("nobody", tiny.fingerprint),
        lambda: store.prune("nobody", tiny.fingerprint),
    ):
        with pytest.raises(UnknownPromptSet, match="Known: demo"):
            ask()
    with pytest.raises(UnknownVersion, match="no version 000000000000"):
        store.load("demo@000000000000", tiny)


@pytest.mark.parametrize("name", ["../demo", "/etc", "demo/../demo", "Demo", "", ".", "*"])
def test_a_path_is_never_a_name(store: PromptStore, tiny: Clip, name: str) -> None:
    store.publish(learned_set(tiny), activate=True)
    for ask in (
        lambda: store.load(name, tiny),
        lambda: store.versions(name, tiny.fingerprint),
        lambda: store.pointer(name, tiny.fingerprint),
        lambda: store.rollback(name, tiny.fingerprint),
        lambda: store.prune(name, tiny.fingerprint),
        lambda: store.active(name),
    ):
        with pytest.raises(InvalidInput):
            ask()


def test_versions_are_listed_newest_first_with_their_states(store: PromptStore, tiny: Clip) -> None:
    refs = [store.publish(learned_set(tiny, seed=seed), activate=seed == 1) for seed in range(3)]
    (store.root / tiny.fingerprint[:8] / "demo" / "000000000000.safetensors").write_bytes(b"half a fi")
    versions = store.versions("demo", tiny.fingerprint)
    assert [stored.ref.version for stored in versions] == [
        *(ref.version for ref in reversed(refs)),
        "000000000000",
    ]
    assert [stored.state for stored in versions] == ["available", "active", "available", "refused"]
    assert versions[3].reason == "not-safetensors"
    assert versions[0].shapes == {"text_context": (1, 4, 32)}
    assert [finding.reason for finding in store.verify(tiny)] == ["not-safetensors"]


def test_sets_of_other_clips_are_listed_and_refused_only_when_asked_for(
    store: PromptStore, tiny: Clip
) -> None:
    ref = store.publish(learned_set(tiny), activate=True)
    assert store.names() == ["demo"]
    assert store.names(OTHER) == []
    assert store.active(OTHER) == {}
    assert [stored.state for stored in store.versions("demo", OTHER)] == ["other-backbone"]
    for ask in (
        lambda: store.activate(ref, OTHER),
        lambda: store.rollback("demo", OTHER),
        lambda: store.prune("demo", OTHER),
    ):
        with pytest.raises(PromptSetRefused) as refused:
            ask()
        assert refused.value.reason == "foreign-fingerprint"


def test_a_clips_own_set_wins_over_one_for_any_clip_once_active(store: PromptStore, tiny: Clip) -> None:
    words = store.publish(template_set("a {}.", name="demo"), activate=True)
    own = store.publish(learned_set(tiny))
    assert store.load("demo", tiny).ref == words
    store.activate(own, tiny.fingerprint)
    assert store.load("demo", tiny).ref == own
    assert store.active(OTHER) == {"demo": words}
    with pytest.raises(InvalidInput, match="own, which wins"):
        store.activate(words, tiny.fingerprint)
    assert store.load(words, tiny).ref == words


def test_verify_finds_shapes_that_do_not_fit_and_pointers_to_nothing(store: PromptStore, tiny: Clip) -> None:
    ref = store.publish(learned_set(tiny), activate=True)
    assert store.verify(tiny) == []
    (store.root / tiny.fingerprint[:8] / "demo" / f"{ref.version}.safetensors").unlink()
    (finding,) = store.verify(tiny)
    assert (finding.reason, finding.path) == ("dangling-pointer", f"{tiny.fingerprint[:8]}/demo/ACTIVE")
    with pytest.raises(UnknownVersion):
        store.load("demo", tiny)


def test_strangers_in_the_folder_are_ignored(store: PromptStore, tiny: Clip) -> None:
    store.publish(learned_set(tiny), activate=True)
    for path in (
        "README.md",
        "lost+found/demo/x",
        f"{tiny.fingerprint[:8]}/UPPER/x",
        f"{tiny.fingerprint[:8]}/demo/notes.safetensors",
    ):
        (store.root / path).parent.mkdir(parents=True, exist_ok=True)
        (store.root / path).write_text("hello")
    assert store.names() == ["demo"]
    assert store.verify(tiny) == []
    assert len(store.versions("demo", tiny.fingerprint)) == 1


def test_pruning_keeps_the_newest_the_active_and_the_one_before(store: PromptStore, tiny: Clip) -> None:
    refs = [store.publish(learned_set(tiny, seed=seed)) for seed in range(6)]
    store.activate(refs[1], tiny.fingerprint)
    store.activate(refs[0], tiny.fingerprint)
    (store.root / tiny.fingerprint[:8] / "demo" / "000000000000.safetensors").write_bytes(
        b"of a later format, perhaps"
    )
    assert set(store.prune("demo", tiny.fingerprint, keep=2)) == {refs[2], refs[3]}
    assert {stored.ref for stored in store.versions("demo", tiny.fingerprint)} == {
        *refs[:2],
        *refs[4:],
        Ref("demo", "000000000000"),
    }
    assert store.prune("demo", tiny.fingerprint, keep=2) == []
    with pytest.raises(InvalidInput):
        store.prune("demo", tiny.fingerprint, keep=-1)


def test_a_report_goes_with_its_version(store: PromptStore, tiny: Clip) -> None:
    refs = [store.publish(learned_set(tiny, seed=seed)) for seed in range(2)]
    shelf = store.root / tiny.fingerprint[:8] / "demo"
    for ref in refs:
        (shelf / f"{ref.version}.html").write_text("how it was learned")
    assert store.verify(tiny) == []
    assert store.prune("demo", tiny.fingerprint, keep=1) == [refs[0]]
    assert [path.stem for path in shelf.glob("*.html")] == [refs[1].version]


def test_a_copy_in_another_store_is_the_same_version_with_its_report(
    store: PromptStore, tiny: Clip, tmp_path: Path
) -> None:
    ref = store.publish(learned_set(tiny), activate=True)
    (store.root / tiny.fingerprint[:8] / "demo" / f"{ref.version}.html").write_text("how it was learned")
    other = PromptStore(tmp_path / "other")
    assert other.copy("demo", tiny, store) == ref
    assert (
        other.root / tiny.fingerprint[:8] / "demo" / f"{ref.version}.html"
    ).read_text() == "how it was learned"
    assert other.active(tiny.fingerprint) == {}
    assert other.verify(tiny) == []


def test_a_copy_under_another_name_is_the_same_prompts_and_says_whose_copy_it_is(
    store: PromptStore, tiny: Clip
) -> None:
    ref = store.publish(learned_set(tiny, note="Learned at night."))
    copy = store.copy(ref, tiny, store, name="promoted", activate=True)
    assert (copy.name, store.active(tiny.fingerprint)) == ("promoted", {"promoted": copy})
    first, second = store.load(ref, tiny), store.load(copy, tiny)
    assert second.prompts.digest() == first.prompts.digest()
    assert second.manifest.note == f"Learned at night. A copy of {ref}."
    assert second.manifest.model_copy(update={"name": "demo", "note": first.manifest.note}) == first.manifest
    with pytest.raises(InvalidInput, match="small letters"):
        store.copy(ref, tiny, store, name="../promoted")
    assert store.verify(tiny) == []


def test_a_copy_with_results_is_another_version_and_the_same_but_for_them(
    store: PromptStore, tiny: Clip, tmp_path: Path
) -> None:
    known = CLEAN.model_copy(update={"split": "train:validation"})
    ref = store.publish(learned_set(tiny, results=[known]), activate=True)
    copy = store.copy(ref, tiny, store, results=[CLEAN, known])
    assert (copy.name, copy == ref, store.active(tiny.fingerprint)) == ("demo", False, {"demo": ref})
    first, second = store.load(ref, tiny), store.load(copy, tiny)
    assert second.prompts.digest() == first.prompts.digest()
    assert second.manifest == first.manifest.model_copy(update={"results": (known, CLEAN)})
    assert store.copy(copy, tiny, store, results=[CLEAN.model_copy(update={"accuracy": 0.6})]) == copy
    elsewhere = PromptStore(tmp_path / "other")
    promoted = elsewhere.load(
        elsewhere.copy(ref, tiny, store, name="promoted", results=[CLEAN]), tiny
    ).manifest
    assert (promoted.results, promoted.note) == ((known, CLEAN), f"A copy of {ref}.")
    assert [*store.verify(tiny), *elsewhere.verify(tiny)] == []


def test_words_for_any_clip_take_no_results_of_one(store: PromptStore, tiny: Clip) -> None:
    ref = store.publish(template_set("a {}."))
    with pytest.raises(InvalidInput, match="any CLIP") as refused:
        store.copy(ref, tiny, store, results=[CLEAN])
    assert refused.value.field == "--results"


def test_the_report_of_a_copy_is_that_of_the_set_it_copies(store: PromptStore, tiny: Clip) -> None:
    page = b"<h1>demo: advpt</h1> how it was learned \xff"
    ref = store.publish(learned_set(tiny), report=page)
    shelf = store.root / tiny.fingerprint[:8]
    copies = [store.copy(ref, tiny, store, name="promoted"), store.copy(ref, tiny, store, results=[CLEAN])]
    for copy in copies:
        assert (shelf / copy.name / f"{copy.version}.html").read_bytes() == page
    assert (shelf / "demo" / f"{ref.version}.html").read_bytes() == page


def test_a_copy_activates_as_activating_does_and_takes_no_link_for_a_report(
    store: PromptStore, tiny: Clip, tmp_path: Path
) -> None:
    store.publish(learned_set(tiny), activate=True)
    other = PromptStore(tmp_path / "other")
    words = other.publish(template_set("a {}.", name="demo"), activate=True)
    with pytest.raises(InvalidInput, match="wins over"):
        store.copy(words, tiny, other, activate=True)
    learned = other.publish(learned_set(tiny, name="linked"))
    (other.root / tiny.fingerprint[:8] / "linked" / f"{learned.version}.html").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(PromptSetRefused, match="link"):
        store.copy(learned, tiny, other)
    assert "linked" not in store.names()
    with pytest.raises(InvalidInput, match="no folder"):
        PromptStore(tmp_path / "secret").copy(words, tiny, other)


def test_seeding_adds_what_is_absent_and_leaves_the_operators_pointer(store: PromptStore, tiny: Clip) -> None:
    own = store.publish(template_set("my own {}.", name="handcrafted"), activate=True)
    added = store.seed_from(SHIPPED)
    assert {ref.name for ref in added} >= {"handcrafted", "handcrafted-ensemble"}
    assert store.active(tiny.fingerprint)["handcrafted"] == own
    assert store.load("handcrafted-ensemble", tiny).manifest.objective["kind"] == "handcrafted"
    assert store.seed_from(SHIPPED) == []
    store.activate(next(ref for ref in added if ref.name == "handcrafted"), tiny.fingerprint)
    assert store.rollback("handcrafted", tiny.fingerprint) == own


def test_a_read_only_store_reads_and_never_writes(store: PromptStore, tiny: Clip) -> None:
    ref = store.publish(learned_set(tiny), activate=True)
    reader = PromptStore(store.root, read_only=True)
    assert reader.load("demo", tiny).ref == ref
    for write in (
        lambda: reader.publish(learned_set(tiny)),
        lambda: reader.activate(ref, tiny.fingerprint),
        lambda: reader.rollback("demo", tiny.fingerprint),
        lambda: reader.prune("demo", tiny.fingerprint),
        lambda: reader.seed_from(SHIPPED),
    ):
        with pytest.raises(StoreReadOnly):
            write()


def test_writers_wait_for_another_for_some_seconds(
    store: PromptStore, tiny: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = store.publish(learned_set(tiny), activate=True)
    holder = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )
    for seconds, patience in (("0.3", 30.0), ("60", 0.2)):
        monkeypatch.setattr("prompts_store.files.PATIENCE", patience)
        command = [sys.executable, "-c", holder, str(store.root / ".lock"), seconds]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if seconds == "60":
                with pytest.raises(StoreBusy, match=r"writing to .* for 0\.2 seconds"):
                    store.activate(ref, tiny.fingerprint)
                assert store.load("demo", tiny).ref == ref, "readers don't wait"
                process.kill()
            else:
                store.activate(ref, tiny.fingerprint)


def test_a_full_disk_changes_nothing(tmp_path: Path, tiny: Clip) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    try:
        store = PromptStore(small / "store")
        ref = store.publish(learned_set(tiny), activate=True)

        def fill() -> None:
            for seed in range(1, 100):
                store.publish(learned_set(tiny, seed=seed), activate=True)

        with pytest.raises(StoreFull, match="Nothing has changed"):
            fill()
        assert store.verify() == []
        active = store.load("demo", tiny).ref
        assert active.name == ref.name
        assert not [path for path in small.rglob(".*") if path.name != ".lock"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_store_that_does_not_exist_is_empty(tmp_path: Path, tiny: Clip) -> None:
    store = PromptStore(tmp_path / "nowhere")
    assert (store.names(), store.active(tiny.fingerprint), store.verify()) == ([], {}, [])
    assert not store.root.exists()


def test_sixty_publishes_under_two_readers_are_never_torn(store: PromptStore, tiny: Clip) -> None:
    sets = [learned_set(tiny, seed=seed) for seed in range(60)]
    texts = {prompt_set.version: prompt_set.prompts.digest() for prompt_set in sets}
    store.publish(sets[0], activate=True)
    done = threading.Event()
    seen: list[set[str]] = [set(), set()]
    failures: list[BaseException] = []

    def read(into: set[str]) -> None:
        try:
            while not done.wait(
                0.001
            ):  # a breath, or the readers hold the interpreter and the test measures that
                found = store.load("demo", tiny)
                assert found.prompts.digest() == texts[found.version]
                into.add(found.version)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read, args=(into,)) for into in seen]
    for reader in readers:
        reader.start()
    for prompt_set in sets:
        store.publish(prompt_set, activate=True)
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert min(len(into) for into in seen) > 1
    assert store.load("demo", tiny).version == sets[-1].version


def test_writers_in_two_threads_lose_no_version(store: PromptStore, tiny: Clip) -> None:
    def write(seeds: range) -> None:
        for seed in seeds:
            store.publish(learned_set(tiny, seed=seed), activate=True)

    writers = [threading.Thread(target=write, args=(range(start, 20, 2),)) for start in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(store.versions("demo", tiny.fingerprint)) == 20
    assert store.verify(tiny) == []
    assert store.rollback("demo", tiny.fingerprint) in {
        learned_set(tiny, seed=seed).ref for seed in range(20)
    }


def publish_for_ever(root: Path, clip: Clip, start: int) -> None:
    for seed in range(start, 10**6):
        PromptStore(root).publish(learned_set(clip, seed=seed), activate=True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_publisher_killed_at_any_moment_leaves_whole_sets_only(store: PromptStore, tiny: Clip) -> None:
    moments = random.Random(0)
    for start in range(0, 4000, 1000):
        before = len(list(store.root.rglob("*.safetensors")))
        child = multiprocessing.get_context("fork").Process(
            target=publish_for_ever, args=(store.root, tiny, start)
        )
        child.start()
        patience = time.monotonic() + 30
        while len(list(store.root.rglob("*.safetensors"))) == before:
            assert time.monotonic() < patience
            time.sleep(0.002)
        time.sleep(0.05 * moments.random())
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert store.verify(tiny) == []
    store.publish(learned_set(tiny, seed=10**6), activate=True)  # the lock died with its holder
    assert store.load("demo", tiny).manifest.seed == 10**6
    assert len(store.versions("demo", tiny.fingerprint)) > 1
    assert [path.name for path in store.root.rglob(".*")] == [".lock"]


def test_an_empty_folder_left_by_a_killed_publisher_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "any" / "half").mkdir(parents=True)
    assert PromptStore(tmp_path).names() == []
