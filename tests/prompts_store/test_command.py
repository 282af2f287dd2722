import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prompt_sets import learned_set, template_set

from prompts_store.command import main
from prompts_store.store import PromptStore
from robustclip.errors import InvalidInput, NothingToRollBack, UnknownPromptSet, UnknownVersion
from robustclip.models.clip import Clip

RESULT = {
    "data": "caltech-101", "split": "test", "threat": "T0", "eps": "4/255", "n": 256, "accuracy": 0.334,
    "low": 0.28, "high": 0.39,
    "attack": {"kind": "pgd"}, "seed": 0,
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptStore:
    """Two versions of a learned set, the first active, and a set of words; named by the environment."""
    store = PromptStore(tmp_path / "prompts")
    monkeypatch.setenv("ROBUSTCLIP_STORE__PATH", str(store.root))
    monkeypatch.chdir(tmp_path)
    return store


@pytest.fixture(autouse=True)
def _load_once(tiny: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command loads its CLIP; these share the one that the session has loaded already."""
    monkeypatch.setattr(
        "robustclip.models.clip.load_clip", lambda arch, pretrained: {("tiny", None): tiny}[arch, pretrained]
    )


@pytest.fixture
def versions(store: PromptStore, tiny: Clip) -> tuple[str, str]:
    store.publish(template_set("a {}."), activate=True)
    one = store.publish(learned_set(tiny, results=[RESULT]), activate=True)
    return one.version, store.publish(learned_set(tiny, seed=1)).version


def answer(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> Any:
    assert main([*argv, "--backbone", "tiny", "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_list_shows_every_version(
    capsys: pytest.CaptureFixture[str], versions: tuple[str, str], tiny: Clip
) -> None:
    listed = answer(capsys, "list")
    assert listed["fingerprint"] == tiny.fingerprint
    assert [(one["name"], one["version"], one["state"]) for one in listed["versions"]][:2] == [
        ("demo", versions[1], "available"),
        ("demo", versions[0], "active"),
    ]
    assert main(["list", "--backbone", "tiny"]) == 0
    table = capsys.readouterr().out
    assert versions[0] in table
    assert "caltech-101 T0 4/255 33.4 %" in table


def test_list_names_the_split_of_what_was_not_measured_on_test_pictures(
    capsys: pytest.CaptureFixture[str], store: PromptStore, tiny: Clip
) -> None:
    held_out = {**RESULT, "split": "train:validation", "threat": "clean", "eps": "0", "attack": None}
    store.publish(learned_set(tiny, results=[held_out, RESULT]))
    assert main(["list", "--backbone", "tiny"]) == 0
    assert "caltech-101 train:validation clean 33.4 %, caltech-101 T0 4/255 33.4 %" in capsys.readouterr().out


def test_show_tells_everything_of_the_active_or_the_named_version(
    capsys: pytest.CaptureFixture[str], versions: tuple[str, str]
) -> None:
    shown = answer(capsys, "show", "demo")
    assert (shown["version"], shown["tensors"], shown["manifest"]["objective"]["kind"]) == (
        versions[0],
        {"text_context": [1, 4, 32]},
        "advpt",
    )
    assert answer(capsys, "show", f"demo@{versions[1]}")["state"] == "available"
    assert main(["show", "words", "--backbone", "tiny"]) == 0
    assert '"a {}."' in capsys.readouterr().out
    with pytest.raises(UnknownVersion, match=versions[0]):
        main(["show", "demo@000000000000", "--backbone", "tiny"])


def test_explain_reads_the_vectors_and_the_labels(
    capsys: pytest.CaptureFixture[str], versions: tuple[str, str]
) -> None:
    found = answer(capsys, "explain", "demo", "--words", "2")
    assert found["prompt_set"] == f"demo@{versions[0]}"
    assert [len(vector["by_cosine"]) for vector in found["vectors"]] == [2] * 4
    assert [label["label"] for label in found["labels"]] == ["cat", "dog"]
    assert main(["explain", "words", "--labels", "cat,fish", "--backbone", "tiny"]) == 0
    assert "fish" in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="names no labels"):
        main(["explain", "words", "--backbone", "tiny"])


def test_explain_shows_twenty_rows_or_all_and_sums_up_below_them(
    capsys: pytest.CaptureFixture[str], store: PromptStore, tiny: Clip
) -> None:
    store.publish(learned_set(tiny, labels=[f"thing {number}" for number in range(25)]), activate=True)
    assert main(["explain", "demo", "--backbone", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 vectors, nearest to a word first" in shown
    assert shown.count("\n│ thing ") == 20
    assert shown.splitlines()[-2].startswith("Lengths of words in tiny's table")
    assert shown.splitlines()[-1].startswith(
        "0 of 4 vectors in the text tower's first layer are nearer to a word"
    )
    assert main(["explain", "demo", "--all", "--backbone", "tiny"]) == 0
    assert capsys.readouterr().out.count("\n│ thing ") == 25
    assert len(answer(capsys, "explain", "demo")["labels"]) == 25


def test_activate_and_rollback_move_the_pointer(
    capsys: pytest.CaptureFixture[str], versions: tuple[str, str]
) -> None:
    one, two = versions
    assert answer(capsys, "activate", f"demo@{two}") == {"name": "demo", "active": two, "previous": one}
    assert answer(capsys, "rollback", "demo") == {"name": "demo", "active": one, "previous": two}
    assert main(["rollback", "demo", "--backbone", "tiny"]) == 0
    assert capsys.readouterr().out == f"demo@{two} is active, before it {one}\n"
    with pytest.raises(NothingToRollBack):
        main(["rollback", "words", "--backbone", "tiny"])


def test_copy_publishes_under_another_name_or_in_another_store(
    capsys: pytest.CaptureFixture[str],
    store: PromptStore,
    versions: tuple[str, str],
    tmp_path: Path,
    tiny: Clip,
) -> None:
    copied = answer(
        capsys,
        "copy",
        f"demo@{versions[1]}",
        "--name",
        "promoted",
        "--to",
        str(tmp_path / "served"),
        "--activate",
    )
    served = PromptStore(tmp_path / "served")
    assert copied == {
        "ref": str(served.active(tiny.fingerprint)["promoted"]),
        "store": str(served.root),
        "active": True,
        "results_added": 0,
    }
    assert main(["copy", "demo", "--name", "again", "--backbone", "tiny"]) == 0
    assert "published again@" in capsys.readouterr().out
    assert "again" not in store.active(tiny.fingerprint)
    with pytest.raises(InvalidInput, match="the set itself") as refused:
        main(["copy", "demo", "--backbone", "tiny"])
    assert refused.value.field == "--name"


def test_copy_adds_what_a_file_measured_of_that_version(
    capsys: pytest.CaptureFixture[str],
    store: PromptStore,
    versions: tuple[str, str],
    tmp_path: Path,
    tiny: Clip,
) -> None:
    rows = [
        {**RESULT, "prompt_set": f"demo@{versions[0]}", "defense": "none", "threat": threat, "seconds": 1.5}
        for threat in ("T0", "T2")
    ]
    (tmp_path / "table.json").write_text(json.dumps({"results": rows}))
    copied = answer(capsys, "copy", "demo", "--results", "table.json")
    assert (copied["results_added"], copied["active"]) == (1, False)
    assert [one.threat for one in store.load(copied["ref"], tiny).manifest.results] == ["T0", "T2"]
    assert (
        main(
            ["copy", "demo", "--results", "table.json", "--name", "again", "--activate", "--backbone", "tiny"]
        )
        == 0
    )
    assert (
        capsys.readouterr().out
        == f"published {store.active(tiny.fingerprint)['again']} in {store.root} with 1 more results, "
        f"active\n"
    )
    with pytest.raises(InvalidInput, match="nothing about") as refused:
        main(["copy", f"demo@{versions[1]}", "--results", "table.json", "--backbone", "tiny"])
    assert refused.value.field == "--results"
    assert {stored.ref.version for stored in store.versions("demo", tiny.fingerprint)} == {
        *versions,
        copied["ref"][-12:],
    }


def test_verify_says_what_would_be_refused(
    capsys: pytest.CaptureFixture[str], store: PromptStore, versions: tuple[str, str], tiny: Clip
) -> None:
    assert answer(capsys, "verify")["findings"] == []
    path = store.root / tiny.fingerprint[:8] / "demo" / f"{versions[1]}.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    (finding,) = answer(capsys, "verify", status=1)["findings"]
    assert finding["reason"] == "not-safetensors"
    assert main(["verify", "--backbone", "tiny"]) == 1
    assert "not-safetensors" in capsys.readouterr().out


def test_prune_says_what_it_removed(
    capsys: pytest.CaptureFixture[str], store: PromptStore, versions: tuple[str, str]
) -> None:
    assert answer(capsys, "prune", "demo", "--keep", "0") == {"removed": [f"demo@{versions[1]}"]}
    assert main(["prune", "demo", "--backbone", "tiny"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_a_fresh_clone_is_shown_the_sets_that_ship(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTCLIP_STORE__PATH", raising=False)
    assert main(["list", "--backbone", "tiny"]) == 0
    shown = capsys.readouterr()
    assert "handcrafted-ensemble" in shown.out
    assert "no store at var/prompts yet" in shown.err
    with pytest.raises(InvalidInput, match="no store"):
        main(["rollback", "handcrafted", "--backbone", "tiny"])
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_was_named_must_exist(store: PromptStore) -> None:
    with pytest.raises(InvalidInput, match="no store") as refused:
        main(["list", "--backbone", "tiny"])
    assert refused.value.field == "--store"


def test_what_is_unknown_is_the_users_to_cure(versions: tuple[str, str]) -> None:
    with pytest.raises(UnknownPromptSet):
        main(["show", "nobody", "--backbone", "tiny"])
    with pytest.raises(InvalidInput):
        main(["activate", "../demo@000000000000", "--backbone", "tiny"])
    with pytest.raises(SystemExit) as left:
        main(["explode"])
    assert left.value.code == 2


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys; from prompts_store.command import main\ntry: main(['--help'])\nexcept SystemExit: "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "robustclip prompts rollback" in done.stdout
    assert done.stdout.endswith("False\n")
