"""What every threat level must keep, over the table: a new level is tested by being in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from measured import page
from pictures import write_pictures
from tuning import silent

from robustclip.attacks.pgd import FGSM
from robustclip.defenses import parse_defenses
from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.threat import Linf
from training.data.folders import load_data
from training.learning.tuning.command import main as train
from training.measuring.campaigns.select import main as select
from training.measuring.campaigns.suite import main as suite
from training.measuring.evaluation.command import main as evaluate
from training.measuring.evaluation.options import epilog
from training.measuring.schema.evaluation import UNUSUAL, Result
from training.threats import THREAT_LEVELS
from training.threats.base import Effort, SearchLevel, ThreatSet, measure_at, threat_level
from training.threats.judging import AtLevel, Pictures, Victim, victim_of

EFFORT = Effort(eps=(0.5 / 255,), strength="quick", steps=3, queries=4, draws=2, surrogates=("tiny",))
OTHERS: dict[str, Any] = {  # another value of each option that a level may take
    "strength": "thorough",
    "steps": 5,
    "restarts": 2,
    "draws": 3,
    "queries": 9,
    "search": "bfloat16",
    "surrogates": ("mini",),
}
every_level = pytest.mark.parametrize("name", THREAT_LEVELS)


class OneStep(SearchLevel):
    """A level that is not in the table: one step of the whole radius, through everything."""

    name = "FGSM"
    knows = "everything is attacked, by one step"
    loss = "cross_entropy"

    def attack(self, victim: Victim, ball: Linf, effort: Effort) -> FGSM:
        return FGSM(ball=ball)


@pytest.fixture
def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(THREAT_LEVELS, "FGSM", f"{__name__}:OneStep")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set below a root, as a table of `robustclip suite` looks for it."""
    return write_pictures(tmp_path_factory.mktemp("root") / "caltech-101", train=12, test=3)


def victims(clip: Clip, folder: Path, cache: Path) -> Iterator[Victim]:
    """Without a defense, with a tower of its own, and behind random defenses, on six pictures or two."""
    assert clip.visual_width is not None
    data = load_data(folder, "test")
    visual = torch.randn(1, 2, clip.visual_width, generator=torch.Generator().manual_seed(0))
    for prompts, defense, n in (
        (Prompts(), "none", 6),
        (Prompts(visual=visual), "bit_depth:6", 6),
        (Prompts(), "resize_pad", 2),
    ):
        pictures = Pictures(data, torch.arange(n), 0, cache / f"{defense}-{n}", batch=4)
        yield victim_of(clip, prompts, pictures, parse_defenses(defense))


def sets(name: str, effort: Effort = EFFORT) -> list[ThreatSet[Any]]:
    return [*threat_level(name).threat_sets(effort)]


@every_level
def test_a_level_has_its_name_in_one_place_and_a_line_in_the_help(name: str) -> None:
    level = threat_level(name)
    assert level.name == name
    assert level.knows
    assert "\n" not in level.knows
    assert f"  {name} " in epilog()
    assert {*level.parts} <= {*THREAT_LEVELS} - {name}
    assert {*level.takes} <= {*UNUSUAL}
    assert {*level.takes, *level.needs} <= {*Effort.model_fields}


@every_level
def test_what_is_measured_counts_every_picture_and_stays_within_the_bill(
    name: str, tiny: Clip, folder: Path, tmp_path: Path
) -> None:
    level = threat_level(name)
    for victim in victims(tiny, folder, tmp_path):
        (within,) = sets(name)
        found = measure_at(name, victim, within, EFFORT, silent)
        measured = found.measured
        assert len(measured.correct) == len(measured.correct_8bit) == len(victim.pictures.indices)
        bills = [threat_level(each).bill(victim, within, EFFORT) for each in (name, *level.parts)]
        assert 0 < measured.cost.charged <= sum(bill.own + bill.made for bill in bills)
        assert (found.attack is None) == (within.bounds is None)


@every_level
def test_no_attack_leaves_more_than_untouched_pictures_have_and_the_same_again(
    name: str, tiny: Clip, folder: Path, tmp_path: Path
) -> None:
    victim = next(victims(tiny, folder, tmp_path / "first"))
    elsewhere = next(victims(tiny, folder, tmp_path / "second"))
    (within,), (untouched,) = sets(name), sets("clean")
    clean = measure_at("clean", victim, untouched, EFFORT, silent).measured.correct
    first, again = (measure_at(name, each, within, EFFORT, silent) for each in (victim, elsewhere))
    assert not (first.measured.correct & ~clean).any()
    assert _timeless(first) == _timeless(again)


def _timeless(found: AtLevel) -> tuple[object, ...]:
    measured = found.measured
    return (
        measured.correct.tolist(),
        measured.correct_8bit.tolist(),
        measured.cost,
        found.attack,
        found.fell_to,
    )


@every_level
def test_a_key_changes_with_what_the_level_takes_and_with_nothing_else(
    name: str, tiny: Clip, folder: Path, tmp_path: Path
) -> None:
    level = threat_level(name)
    random = [*victims(tiny, folder, tmp_path)][-1]
    usual = Effort(eps=(0.5 / 255,))
    assert level.unusual(usual, randomized=True) == {}
    key = level.key(random, usual)
    named = {
        option
        for option, value in OTHERS.items()
        if level.key(random, usual.model_copy(update={option: value})) != key
    }
    always = {option for option in ("strength", "surrogates") if option in key}
    assert named == {*level.takes, *always}
    assert {*level.needs} <= always
    assert json.loads(json.dumps(key)) == key
    words = level.words(usual.model_copy(update=OTHERS), randomized=True)
    assert {f"--{option.removesuffix('s') if option == 'surrogates' else option}" for option in named} == {
        word for word in words if word.startswith("--")
    }


@every_level
def test_each_threat_set_is_named_apart_or_refused(name: str) -> None:
    wide = sets(name, EFFORT.model_copy(update={"eps": (1 / 255, 2 / 255)}))
    assert len({within.text for within in wide}) == len({json.dumps(dict(within.key)) for within in wide})
    assert len(wide) == len({within.text for within in wide})
    if wide[0].bounds is not None:
        with pytest.raises(InvalidInput, match="above 0"):
            sets(name, EFFORT.model_copy(update={"eps": (0.0,)}))


def test_pages_have_the_order_of_the_table() -> None:
    results = [Result.model_construct(threat=name, eps="1/255") for name in sorted(THREAT_LEVELS)]
    assert [each.threat for each in sorted(results, key=lambda each: each.rank)] == [*THREAT_LEVELS]


@pytest.mark.usefixtures("one_step")
class TestANewLevel:
    """It is reached from everywhere as soon as it is in the table."""

    def common(self, folder: Path, tmp_path: Path) -> list[str]:
        return ["--data", str(folder), "--backbone", "tiny", "--runs", str(tmp_path / "runs")]

    def test_evaluate_plans_measures_and_shows_it(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        written = tmp_path / "page.html"
        options = [*self.common(folder, tmp_path), "--threat", "clean,T0,FGSM,T2", "--eps", "4/255", "--json"]
        assert evaluate([*options, "--dry-run"]) == 0
        plan = json.loads(capsys.readouterr().out)["plan"]
        assert evaluate([*options, "--html", str(written)]) == 0
        rows = json.loads(capsys.readouterr().out)["results"]
        assert [row["threat"] for row in rows] == ["clean", "T0", "FGSM", "T2"]
        clean, _, fgsm, full = rows
        assert (fgsm["attack"]["kind"], fgsm["attack"]["score"], fgsm["n"]) == ("fgsm", "cross_entropy", 9)
        assert full["accuracy"] <= fgsm["accuracy"] <= clean["accuracy"]
        assert 0 < fgsm["cost"]["forward"] + 2 * fgsm["cost"]["backward"] <= plan[2]["charged"]
        assert "--threat FGSM --eps 4/255" in fgsm["command"]
        assert "<td>FGSM</td>" in written.read_text()
        with pytest.raises(SystemExit):
            evaluate(["--help"])
        assert "FGSM       everything is attacked, by one step" in capsys.readouterr().out

    def test_train_validates_at_it(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        learning = ["--objective.kind", "coop", "--objective.epochs", "1", "--name", "new", "--json"]
        places = [*self.common(folder, tmp_path), "--store", str(tmp_path / "store")]
        assert train([*places, *learning, "--validate-at", "clean,FGSM", "--validate-eps", "4/255"]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        assert [(result["threat"], result["eps"]) for result in results] == [
            ("clean", "0"),
            ("FGSM", "4/255"),
        ]
        with pytest.raises(InvalidInput, match="T0b needs surrogates"):
            train([*places, *learning, "--validate-at", "T0b"])

    def test_select_chooses_by_it_and_its_page_says_so(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "chosen.json"
        tried = ["--objective", "coop", "--with", "epochs=1", "--over", "vectors=2,4", "--shots", "2"]
        options = [*self.common(folder, tmp_path), "--by", "FGSM", "--eps", "4/255", "--out", str(out)]
        assert select([*tried, *options]) == 0
        assert "clean, FGSM 4/255 on caltech-101" in capsys.readouterr().out
        record = json.loads(out.read_text())
        assert {number["threat"] for number in record["candidates"][0]["numbers"]} == {"clean", "FGSM"}
        assert "clean, FGSM at 4/255;" in page("chosen", record)

    def test_a_table_measures_it_and_the_results_page_shows_it(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table = tmp_path / "toys.toml"
        table.write_text(
            'title = "Toys"\nbackbone = "tiny"\ndata = ["caltech-101"]\nseeds = [0]\nmax_passes = 100\n'
            '[methods.handcrafted]\nprompt_set = "handcrafted"\n'
            '[[measures]]\nthreats = ["clean", "FGSM"]\neps = ["4/255"]\n'
        )
        places = ["--store", str(tmp_path / "store"), "--runs", str(tmp_path / "runs")]
        assert suite([str(table), "--data", str(folder.parent), *places]) == 0
        content = json.loads((tmp_path / "toys.json").read_text())
        assert [row["threat"] for row in content["results"]] == ["clean", "FGSM"]
        assert "FGSM 4/255" in page("toys", content)


def test_a_level_that_is_not_in_the_table_is_refused_by_the_names_of_those_that_are(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"clean, T0, .*found 'FGSM'") as refused:
        evaluate(["--data", str(folder), "--backbone", "tiny", "--threat", "FGSM"])
    assert refused.value.field == "--threat"
