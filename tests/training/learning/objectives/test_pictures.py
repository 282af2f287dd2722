"""The methods on pictures: their common base, and the equalities between them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tuning import bench, silent, task_of

from robustclip.models.classifier import text_weights, zero_shot
from robustclip.models.clip import Clip, load_clip
from robustclip.models.prompts import Prompts
from robustclip.models.towers import encode_image
from robustclip.seeds import draw_seeds
from training.data.folders import load_data
from training.learning.losses import Opponent
from training.learning.objectives import APT, FAP, both_towers, predictions
from training.learning.objectives.pictures import HAND
from training.learning.objectives.predictions import PATCHES, look, look_untouched, picture_examples

ON_PICTURES = ["apt", "fap", "capt", "apd"]
TRADES = {
    "inner": "kl",
    "steps": 2,
    "coupling": "none",
    "detach_reference": True,
    "eps": "4/255",
    "precision": "float32",
}


def test_pictures_are_kept_without_loss(tiny: Clip, picture_folder: Path) -> None:
    data = load_data(picture_folder, "train")
    indices = torch.tensor([0, 7, 35])
    examples = picture_examples(tiny, data, indices, constants={}, progress=silent)
    torch.testing.assert_close(
        examples.take(torch.tensor([2, 0])), data.pixels(indices[[2, 0]], 32), atol=0, rtol=0
    )
    assert examples.targets.tolist() == data.targets[indices].tolist()


def test_a_look_is_the_image_tower_and_the_scaled_cosine(tiny: Clip) -> None:
    pixels, weights = torch.rand(2, 3, 32, 32), text_weights(tiny, Prompts(), ("cat", "dog"))
    visual = torch.zeros(1, 2, 64).requires_grad_()
    task = task_of(tiny, ("cat", "dog"))
    seen = look(task, pixels, weights, visual, count=2)
    raw = encode_image(tiny, pixels, visual)
    torch.testing.assert_close(
        seen.logits, tiny.logit_scale * (raw / raw.norm(dim=1, keepdim=True)) @ weights.T
    )
    assert (seen.cost.forward, seen.cost.backward) == (2, 2)
    assert look(task, pixels, weights, None, count=2).cost.backward == 0


@pytest.mark.parametrize(
    ("kind", "options", "kept"),
    [("fap", {}, True), ("capt", {}, True), ("apd", {"crops": False}, True), ("apd", {}, False)],
)
def test_what_a_stem_makes_of_untouched_pictures_is_kept_and_changes_no_look(
    picture_folder: Path, tmp_path: Path, kind: str, options: dict[str, bool], kept: bool
) -> None:
    clip = load_clip("mini")
    made = bench(clip, picture_folder, tmp_path, kind, **options)
    assert (PATCHES in made.task.examples.constants) == kept
    visual = torch.randn(2, 2, clip.visual_width or 0, generator=torch.Generator().manual_seed(1))
    weights = text_weights(clip, Prompts(), made.task.labels)
    again = look_untouched(made.task, made.batch, made.batch.inputs, weights, visual)
    whole = look(made.task, made.batch.inputs, weights, visual, count=len(made.batch.rows))
    torch.testing.assert_close(again.logits, whole.logits, atol=1e-4, rtol=1e-5)
    assert again.cost == whole.cost
    half = look_untouched(
        replace(made.task, precision="bf16"), made.batch, made.batch.inputs, weights, visual
    )
    torch.testing.assert_close(half.logits, whole.logits, atol=0.5, rtol=0)
    assert not torch.equal(half.logits, whole.logits)


def test_what_a_stem_makes_of_too_many_pictures_is_not_kept(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (both_towers, predictions):
        monkeypatch.setattr(module, "KEPT_BYTES", 10_000)
    assert PATCHES not in bench(load_clip("mini"), picture_folder, tmp_path, "fap").task.examples.constants


@pytest.mark.parametrize("kind", ["fap", "capt", "apd"])
def test_vectors_of_the_image_tower_have_a_rate_of_their_own(
    tiny: Clip, picture_folder: Path, tmp_path: Path, kind: str
) -> None:
    made = bench(tiny, picture_folder, tmp_path, kind, image_rate=0.1)
    shares = {
        name.split(".")[-1] if name.endswith(("visual", "text")) else "maps": made.objective.share_of_rate(
            name
        )
        for name in made.parameters
    }
    assert shares["visual"] == 0.1
    assert all(share == 1.0 for name, share in shares.items() if name != "visual")


@pytest.mark.parametrize(
    ("kind", "options"), [("fap", {"coupling": "none"}), ("capt", {"coupling": "none"}), ("apd", {})]
)
def test_a_context_for_each_label_is_learned_from_all_pictures(
    tiny: Clip, picture_folder: Path, tmp_path: Path, kind: str, options: dict[str, str]
) -> None:
    made = bench(tiny, picture_folder, tmp_path, kind, class_specific=True, **options)
    prompts = made.objective.fold(tiny, made.parameters)
    assert prompts.class_specific
    assert prompts.text is not None
    assert len(prompts.text) == len(made.task.labels)
    torch.stack(list(made.step().losses.values())).sum().backward()
    text = next(tensor for name, tensor in made.parameters.items() if name.endswith("text"))
    assert text.grad is not None
    assert bool(text.grad.flatten(1).any(dim=1).all())


@pytest.mark.parametrize("kind", ON_PICTURES)
def test_the_training_attack_stays_in_its_ball_and_in_the_box(
    tiny: Clip, picture_folder: Path, tmp_path: Path, kind: str
) -> None:
    made = bench(
        tiny,
        picture_folder,
        tmp_path,
        kind,
        eps="64/255",
        warm_start=True,
        **({"crops": False} if kind == "apd" else {}),
    )
    prompts = made.objective.fold(tiny, made.parameters).detached()
    opponent = Opponent(tiny, text_weights(tiny, prompts, made.task.labels), prompts.visual, "bf16")
    untouched = made.batch.inputs
    clean = zero_shot(tiny, prompts, made.task.labels)(untouched, made.batch.rows).detach()
    for start in ("drawn", "kept"):
        attacked, _ = made.objective.perturb(made.task, made.batch, untouched, opponent, clean=clean)
        assert float((attacked - untouched).abs().amax()) == pytest.approx(64 / 255, abs=1e-6), start
        assert (float(attacked.amin()), float(attacked.amax())) == (0.0, 1.0), start
        assert int(made.task.memory["change"].abs().amax()) == 127, (
            start
        )  # in units of eps / 127: the ball's edge, and nothing beyond


def test_capt_without_the_frozen_clip_and_fap_without_weights_are_trades(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    fap = bench(tiny, picture_folder, tmp_path, "fap", weighting="uniform", **TRADES).step()
    capt = bench(tiny, picture_folder, tmp_path, "capt", alpha_rule="constant", alpha=0, **TRADES).step()
    for name in ("clean", "consistency"):
        torch.testing.assert_close(capt.losses[name], fap.losses[name])
    assert list(fap.losses) == list(capt.losses) == ["clean", "consistency"]


def test_apd_that_teaches_itself_is_trades_without_the_clean_term(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    form = {**TRADES, "inner": "cross_entropy"}
    trades = bench(tiny, picture_folder, tmp_path, "fap", weighting="uniform", consistency=1, **form).step()
    options = {
        "mu": 0,
        "vision": 0,
        "text": 0,
        "crops": False,
        "steps": 2,
        "eps": "4/255",
        "precision": "float32",
    }
    apd = bench(tiny, picture_folder, tmp_path, "apd", **options).step()
    torch.testing.assert_close(apd.losses["consistency"], trades.losses["consistency"])
    assert list(apd.losses) == ["consistency", "teacher_clean"]


@pytest.mark.parametrize("kind", ON_PICTURES)
def test_an_anchor_holds_text_near_the_handcrafted_ensemble(
    tiny: Clip, picture_folder: Path, tmp_path: Path, kind: str
) -> None:
    made = bench(tiny, picture_folder, tmp_path, kind, anchor=2.0)
    weights = text_weights(tiny, made.objective.fold(tiny, made.parameters), made.task.labels)
    expected = 2 * (1 - (weights * made.task.examples.constants[HAND]).sum(dim=1)).mean()
    torch.testing.assert_close(made.step().losses["anchor"], expected)


def test_terms_on_attacked_pictures_can_grow_slowly(tiny: Clip, picture_folder: Path, tmp_path: Path) -> None:
    losses = [
        float(
            bench(tiny, picture_folder, tmp_path, "apt", ramp=3, epoch=epoch)
            .step()
            .losses["attacked"]
            .detach()
        )
        for epoch in (0, 1.9, 3, 7)
    ]
    assert losses[0] == pytest.approx(losses[2] / 4, rel=1e-5)
    assert losses[1] == pytest.approx(losses[2] / 2, rel=1e-5)
    assert losses[3] == losses[2]


def test_they_begin_to_grow_when_the_student_begins_not_when_its_offline_teacher_does(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    offline = {"teacher": "offline", "teacher_epochs": 5, "ramp": 3, "crops": False}
    losses = [
        float(
            bench(tiny, picture_folder, tmp_path, "apd", epoch=epoch, **offline)
            .step()
            .losses["attacked"]
            .detach()
        )
        for epoch in (5, 6.9, 8)
    ]
    assert losses[0] == pytest.approx(losses[2] / 4, rel=1e-5)
    assert losses[1] == pytest.approx(losses[2] / 2, rel=1e-5)


def test_a_warm_start_begins_where_the_last_attack_ended(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    made = bench(
        tiny,
        picture_folder,
        tmp_path,
        "apt",
        eps="8/255",
        step="1/255",
        warm_start=True,
        precision="float32",
        steps=2,
    )
    harms = [float(made.step().losses["attacked"].detach()) for _ in range(3)]
    assert harms[0] < harms[1] < harms[2]


def test_warm_starts_end_when_a_stronger_attack_finds_more(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    made = bench(
        tiny, picture_folder, tmp_path, "apt", eps="16/255", warm_start=True, steps=1, step="0.01/255"
    )
    assert (
        made.objective.tend(made.task, made.parameters, epoch=1, seeds=draw_seeds(0, 6)).notes == {}
    )  # nothing is kept yet
    weights = text_weights(tiny, made.objective.fold(tiny, made.parameters), made.task.labels)
    made.task.examples.targets.copy_(
        look(made.task, made.task.examples.take(torch.arange(6)), weights, None, count=6).logits.argmax(dim=1)
    )
    made.task.memory["change"].fill_(0)[0, 0, 0, 0] = 1
    tended = made.objective.tend(made.task, made.parameters, epoch=1, seeds=draw_seeds(0, 6))
    assert tended.notes["trained"] - tended.notes["checked"] > 0.1
    assert bool(made.task.memory["fresh"])
    assert (tended.cost.forward, tended.cost.backward) == (6 * 13, 6 * 11)


def test_steps_have_the_lengths_of_their_papers() -> None:
    assert APT(eps=3 / 255).step_length() == pytest.approx(2 / 255)
    assert FAP(eps=1 / 255).step_length() == 1 / 255
    assert APT(eps=3 / 255, step=0.01).step_length() == 0.01
