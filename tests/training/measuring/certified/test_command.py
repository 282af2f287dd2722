"""`robustclip certified`: what it counts, what it keeps, what it refuses."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from robustclip.certificates.certify import Certificate, certify_features
from robustclip.errors import DataRefused, RobustClipError
from training.measuring.certified import certification
from training.measuring.certified.command import main

RULE = ["--n", "120", "--n0", "20", "--limit", "5", "--radius", "0.01,0.1,0.2"]
ATTACK = ["--attack", "--steps", "2", "--draws", "2", "--restarts", "1"]


class Bench:
    """The command over generated pictures, with its places in a temporary folder."""

    def __init__(self, folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.runs = folder, capsys, folder / "runs"
        self.places = [
            "--backbone",
            "tiny",
            "--data",
            str(pictures),
            "--store",
            str(folder / "store"),
            "--runs",
            str(self.runs),
        ]

    def print(self, *options: str, status: int = 0) -> str:
        assert (
            main([*self.places, *RULE, *(() if "--sigma" in options else ("--sigma", "0.1")), *options])
            == status
        )
        return self.capsys.readouterr().out

    def told(self, *options: str, status: int = 0) -> dict[str, Any]:
        return json.loads(self.print("--json", *options, status=status))

    def row(self, *options: str, status: int = 0) -> dict[str, Any]:
        (row,) = self.told(*options, status=status)["results"]
        return row

    def kept(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.runs.rglob("*") if path.is_file()}


@pytest.fixture
def bench(tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, picture_folder, capsys)


def test_counts_are_those_of_the_pictures(bench: Bench) -> None:
    row = bench.row("--per-picture", *ATTACK, "--direct", "2")
    pictures = row["pictures"]
    assert row["n"] == len(pictures) == 5
    assert row["right"]["count"] == sum(each["answer"] == each["truth"] for each in pictures)
    assert row["abstained"]["count"] == sum(each["answer"] is None for each in pictures)
    assert row["certified"]["count"] == sum(each["radius_l2"] > 0 for each in pictures) > 0
    for part in row["within"]:
        assert part["count"] == sum(
            each["label"] == each["truth"] and each["radius_l2"] > part["l2"] for each in pictures
        )
        assert part["low"] <= part["share"] == part["count"] / 5 <= part["high"]
    assert all(each["radius_l2"] <= row["ceiling_l2"] for each in pictures)
    assert [(part["norm"], part["factor"], part["n"]) for part in row["attacks"]] == [
        (norm, 0.99, row["certified"]["count"]) for norm in ("l2", "linf")
    ]
    assert all(part["fell"] == 0 for part in row["attacks"])
    assert row["refuted"] == []
    assert row["direct"] == {"n": 2, "same": 2}
    assert row["exploratory"] is False


def test_whose_votes_are_counted_is_said_wherever_it_is_read(bench: Bench) -> None:
    said = " ".join(bench.print().split())
    assert "right by 120 votes" in said
    assert "no answer by 120 votes" in said
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "decided by --n votes, while `classify` takes 100 unless" in " ".join(
        bench.capsys.readouterr().out.split()
    )


def test_the_cached_path_counts_the_same_votes_as_the_direct_one(bench: Bench) -> None:
    for options in (
        ["--sigma", "1"],
        ["--sigma", "0.3", "--denoise", "tiny"],
        ["--defense", "bit_depth:4,resize_pad"],
    ):
        for again in range(2):  # made, then read
            row = bench.row(*options, "--direct", "5", "--per-picture")
            assert row["direct"] == {"n": 5, "same": 5}, again
    assert len({each["hits"] for each in row["pictures"]}) > 1 or row["abstained"]["count"] == 0


def test_votes_that_differ_without_the_kept_embeddings_are_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def miscounted(*arguments: Any, **options: Any) -> Certificate:
        found = certify_features(*arguments, **options)
        return found.model_copy(update={"hits": found.hits - 1})

    monkeypatch.setattr(certification, "certify_features", miscounted)
    assert bench.row("--direct", "3", status=1)["direct"] == {"n": 3, "same": 0}


def test_a_certificate_that_says_too_much_is_refuted_by_the_attack(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overstated(*arguments: Any, **options: Any) -> Certificate:
        found = certify_features(*arguments, **options)
        return found.model_copy(update={"radius_l2": 100.0, "radius_linf": 1.0, "abstained": False})

    monkeypatch.setattr(certification, "certify_features", overstated)
    strong = ["--attack", "0.5", "--steps", "10", "--draws", "8"]
    row = bench.row(*strong, status=1)
    assert row["refuted"]
    wrong = row["refuted"][0]
    assert wrong["attempt"]["fell"]
    assert wrong["attempt"]["hits"] < 60
    assert wrong["attempt"]["distance"] < wrong["certificate"]["radius_l2"]
    assert f"refuted: {wrong['picture']}" in " ".join(bench.print(*strong, status=1).split())


def test_a_killed_run_goes_on_where_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.row(*ATTACK, "--direct", "2", "--runs", str(bench.folder / "other-runs"))
    for name, after in (("noisy_features", 3), ("attack_certificate", 3), ("certify", 1)):
        left, real = iter(range(after)), getattr(certification, name)

        def dies(*arguments: Any, left: Any = left, real: Any = real, **options: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(certification, name, dies)
            with pytest.raises(KeyboardInterrupt):
                bench.row(*ATTACK, "--direct", "2")
    before = bench.kept()
    assert bench.row(*ATTACK, "--direct", "2") == whole
    after = bench.kept()
    assert after.items() >= before.items()
    assert bench.row(*ATTACK, "--direct", "2") == whole
    assert bench.kept() == after


def test_the_bill_comes_first_and_only_for_what_is_not_there(bench: Bench) -> None:
    plan = bench.told(*ATTACK, "--direct", "2", "--dry-run")
    (cell,) = plan["plan"]
    gradients = 2 * (
        2 * 3 + 2 * 2 * 2
    )  # draws x (forwards + 2 backwards), from the picture and from one random start
    assert cell["certificates"] == 5 * 140
    assert cell["direct"] == 2 * 140
    assert cell["attacks"] == 5 * 2 * (2 * gradients // 2 + 120)
    assert (
        plan["charged"]
        == cell["charged"]
        == sum(cell[name] for name in ("certificates", "attacks", "direct"))
    )
    assert "charged passes" in plan["summary"]
    assert not bench.runs.exists()
    row = bench.row(*ATTACK, "--direct", "2")
    assert row["cost"]["forward"] + 2 * row["cost"]["backward"] <= plan["charged"]
    if row["certified"]["count"] == 5:
        assert bench.told(*ATTACK, "--direct", "2", "--dry-run")["charged"] == 0
    assert bench.told("--dry-run")["plan"][0]["kept"] == 5


def test_the_denoiser_is_on_the_bill(bench: Bench) -> None:
    assert bench.told("--denoise", "tiny", "--dry-run")["charged"] == 4 * bench.told("--dry-run")["charged"]


def test_prompt_sets_of_one_run_share_noise_and_alpha_and_later_ones_are_exploratory(bench: Bench) -> None:
    words = ["--prompt-set", "a photo of a {}.", "--prompt-set", "a drawing of a {}."]
    assert bench.told(*words, "--dry-run")["charged"] == 5 * 140
    first, second = bench.told(*words)["results"]
    assert first["prompt_set"] == "a photo of a {}."
    assert [row["alpha"] for row in (first, second)] == [0.0005] * 2
    assert not first["exploratory"]
    assert not second["exploratory"]
    assert len(list((bench.runs / "noise").glob("*/*.safetensors"))) == 5
    assert bench.row("--prompt-set", "{}")["exploratory"]


def test_the_printed_command_gives_the_same_row(bench: Bench) -> None:
    for row in bench.told(
        "--sigma",
        "0.1,0.25",
        "--denoise",
        "tiny",
        "--defense",
        "bit_depth:5",
        "--seed",
        "3",
        "--n",
        "40",
        *ATTACK,
    )["results"]:
        words = shlex.split(row["command"])
        assert words[:2] == ["robustclip", "certified"]
        assert main([*words[2:], "--runs", str(bench.folder / "other-runs")]) == 0
        assert json.loads(bench.capsys.readouterr().out)["results"] == [row]


def test_a_table_tells_people_the_same(bench: Bench) -> None:
    row = bench.row(*ATTACK)
    said = bench.print(*ATTACK)
    assert f"{100 * row['right']['share']:.1f} ({100 * row['right']['low']:.1f} to" in said
    assert f"0 of {row['certified']['count']}" in said
    assert "right within L2 0.1 (Linf 0.46/255)" in said  # 0.1 / sqrt(3 * 32 * 32) in levels


def test_a_file_that_was_tampered_with_is_refused(bench: Bench) -> None:
    bench.row("--direct", "1")
    (cell,) = (bench.runs / "certified").iterdir()
    cell.write_text("{}")
    with pytest.raises(DataRefused, match="no answer about a certificate"):
        bench.row("--direct", "1")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (["--sigma", "0"], "--sigma"),
        (["--sigma", "0.1,much"], "--sigma"),
        (["--n", "0"], "--n"),
        (["--n0", "many"], "--n0"),
        (["--alpha", "0.5"], "--alpha"),
        (["--seed", "-1"], "--seed"),
        (["--denoise", "theirs"], "--denoise"),
        (["--denoise", "nowhere.json"], "--denoise"),
        (["--defense", "smoothing:0.1"], "--defense"),
        (["--defense", "varnish"], "--defense/0"),
        (["--radius", "-1"], "--radius"),
        (["--attack", "0"], "--attack"),
        (["--attack", "--steps", "0"], "--steps"),
        (["--attack", "--draws", "1"], "--draws"),
        (["--direct", "-1"], "--direct"),
        (["--limit", "few"], "--limit"),
        (["--split", "nowhere"], None),
        (["--prompt-set", "unheard-of"], "--prompt-set"),
    ],
)
def test_bad_options_name_themselves(bench: Bench, change: list[str], field: str | None) -> None:
    with pytest.raises(RobustClipError) as refusal:
        main([*bench.places, *RULE, *change])
    assert field is None or refusal.value.field == field
    assert not bench.runs.exists()


def test_a_store_is_only_read(bench: Bench) -> None:
    bench.row()
    assert not (bench.folder / "store").exists()
