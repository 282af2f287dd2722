"""Stored witnesses before other decisions, judged as those would judge them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from probed import probed, stored
from probing import LABELS

from robustclip.defenses import bind_chain, parse_defenses
from robustclip.errors import InvalidInput, ReportRefused
from robustclip.models.classifier import Defended, TorchImageEncoder, zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.models.scoring import Scoring
from robustclip.reports.replay import FeatureClassifier, Rejudged, Replay, newly_fooled, replay
from robustclip.reports.witnesses import Witness, collect
from robustclip.seeds import draw_seeds
from robustclip.types import Embed, Features, Logits, Pixels, Seeds

TEMPLATE = "a bad sketch of the {}."
TWO = ("cat", "dog")


class Chain:
    """A deployed chain of `tiny` that counts the rows of its tower."""

    def __init__(self, clip: Clip, *, template: str = "a photo of a {}.", defense: str = "none") -> None:
        self.clip, self.prompts, self.rows = clip, Prompts(templates=(template,)), list[int]()
        encoder = TorchImageEncoder(clip)
        self.deployed = Defended(
            zero_shot(clip, self.prompts, LABELS, encoder=encoder),
            bind_chain(parse_defenses(defense), encoder),
        )

    def encode(self, pixels: Pixels, seeds: Seeds) -> Features:
        self.rows.append(len(pixels))
        return self.deployed.features(pixels, seeds)

    def judge(self, features: Features, labels: tuple[str, ...], scoring: Scoring) -> Logits:
        return zero_shot(self.clip, self.prompts, labels, scoring=scoring).judge(features)

    def replay(self, witnesses: Sequence[Witness], *, draws: int = 1) -> Replay:
        encode: Embed = self.encode
        judge: FeatureClassifier = self.judge
        return replay(witnesses, encode, judge, size=self.clip.image_size, draws=draws)


@pytest.fixture(scope="module")
def witnesses(tiny: Clip, tmp_path_factory: pytest.TempPathFactory) -> tuple[Witness, ...]:
    folder = tmp_path_factory.mktemp("witnesses")
    for seed in (1, 2, 3):
        stored(probed(tiny, seed=seed, radii=(4, 16)).report, folder / f"{seed}.json")
    stored(probed(tiny, seed=4, radii=(16,), labels=TWO).report, folder / "4.json")
    found = collect([folder]).witnesses
    assert {witness.report.victim.labels for witness in found} == {LABELS, TWO}
    return found


def test_every_witness_fools_the_decision_it_was_made_for(tiny: Clip, witnesses: tuple[Witness, ...]) -> None:
    replayed = Chain(tiny).replay(witnesses)
    assert len(replayed.judged) == len(replayed.fooled) == len(witnesses)
    for each, witness in zip(replayed.judged, witnesses, strict=True):
        assert (each.source, each.label) == (witness.source, witness.record.label)
        assert each.probability == pytest.approx(witness.record.probability, abs=1e-5)


def test_all_pictures_go_through_the_tower_in_one_pass_whatever_their_labels(
    tiny: Clip, witnesses: tuple[Witness, ...]
) -> None:
    chain = Chain(tiny)
    chain.replay(witnesses)
    assert chain.rows == [len(witnesses)]


def test_another_prompt_set_judges_as_it_would_on_its_own(tiny: Clip, witnesses: tuple[Witness, ...]) -> None:
    replayed = Chain(tiny, template=TEMPLATE).replay(witnesses)
    for each, witness in zip(replayed.judged, witnesses, strict=True):
        labels = witness.report.victim.labels
        logits = zero_shot(tiny, Prompts(templates=(TEMPLATE,)), labels)(
            witness.levels[None] / 255, draw_seeds(0, 1)
        )
        assert each.label == labels[int(logits.argmax())]
        assert each.fooled == (each.label != witness.report.input.true_label)


def test_a_randomized_chain_is_judged_by_its_draws(tiny: Clip, witnesses: tuple[Witness, ...]) -> None:
    chain = Chain(tiny, defense="resize_pad")
    replayed = chain.replay(witnesses, draws=12)
    assert sum(chain.rows) == 12 * len(witnesses)
    for each in replayed.judged:
        assert each.rate is not None
        assert each.rate.draws == 12
        assert each.fooled == (each.rate.low > 0.5)
    alone = Chain(tiny, defense="resize_pad").replay(witnesses[-1:], draws=12)
    assert alone.judged[0].rate == replayed.judged[-1].rate, "other pictures change nothing"


def test_a_goal_counts_only_if_it_is_reached(tiny: Clip, tmp_path: Path) -> None:
    clean = probed(tiny, radii=(32,)).report
    target = next(label for label in reversed(LABELS) if label != clean.input.clean.label)
    report = probed(tiny, radii=(32,), target_label=target).report
    assert report.verdict.value == "broken"
    stored(report, tmp_path / "report.json")
    replayed = Chain(tiny, template=TEMPLATE).replay(collect([tmp_path]).witnesses)
    for each in replayed.judged:
        assert each.fooled == (each.label == target)


def test_labels_that_a_decision_can_t_take_are_skipped_and_named(
    tiny: Clip, witnesses: tuple[Witness, ...]
) -> None:
    chain = Chain(tiny)

    def judge(features: Features, labels: tuple[str, ...], scoring: Scoring) -> Logits:
        if labels == TWO:
            raise InvalidInput("no context for 'cat'.", field="labels/0")
        return chain.judge(features, labels, scoring)

    replayed = replay(witnesses, chain.encode, judge, size=tiny.image_size)
    assert [each.source for each in replayed.skipped] == [
        witness.source for witness in witnesses if witness.report.victim.labels == TWO
    ]
    assert len(replayed.judged) + len(replayed.skipped) == len(witnesses)


def test_a_witness_of_another_size_is_refused_by_name(tiny: Clip, witnesses: tuple[Witness, ...]) -> None:
    chain = Chain(tiny)
    with pytest.raises(ReportRefused, match="made at 32 pixels, this backbone sees 64") as refusal:
        replay(witnesses, chain.encode, chain.judge, size=64)
    assert refusal.value.field == witnesses[0].source


def test_nothing_to_replay_is_nothing_fooled(tiny: Clip) -> None:
    chain = Chain(tiny)
    assert chain.replay(()).fooled == ()
    assert chain.rows == []


def test_only_what_stood_before_is_newly_fooled() -> None:
    def replayed(**fooled: bool) -> Replay:
        return Replay(judged=tuple(judged(name, hit) for name, hit in fooled.items()), skipped=())

    def judged(name: str, fooled: bool) -> Rejudged:
        return Rejudged(
            source=name,
            sha256="",
            found_on="",
            attack="pgd",
            knowledge="adaptive",
            change=float(len(name)),
            true_label="cat",
            target_label=None,
            label="dog",
            probability=1.0,
            fooled=fooled,
            rate=None,
        )

    candidate = replayed(aaa=True, bb=True, c=False, dd=True, eeee=True)
    current = replayed(aaa=False, bb=True, c=False, eeee=False)  # dd is not known to have stood
    assert [each.source for each in newly_fooled(candidate, current)] == ["aaa", "eeee"], (
        "the least conspicuous first"
    )


def test_a_replay_is_json_with_a_schema(tiny: Clip, witnesses: tuple[Witness, ...]) -> None:
    replayed = Chain(tiny).replay(witnesses)
    assert torch.tensor([each.fooled for each in replayed.judged]).all()
    text = replayed.model_dump_json(by_alias=True)
    assert text.startswith('{"schema":"robustclip.replay/1"')
    assert Replay.model_validate_json(text) == replayed
