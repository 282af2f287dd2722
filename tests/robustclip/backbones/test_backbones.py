"""The embedded backbones: what ships loads, fits its card, and knows everyday pictures."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
import skimage.data
import torch
from torch.nn import functional as F

from robustclip.attacks.pgd import PGD
from robustclip.backbones import embedded_names, read_config, terms_of
from robustclip.images import load_pixels
from robustclip.models.classifier import TorchImageEncoder, text_weights, zero_shot
from robustclip.models.clip import Clip, load_clip
from robustclip.models.prompts import Prompts
from robustclip.models.towers import encode_image, encode_text
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf

BACKBONES = Path(str(files("robustclip.backbones")))
LABELS = ("cat", "dog", "rocket", "car", "cup of coffee", "flower", "guitar", "church", "bicycle", "fish")
PICTURES = 1000
ATTACKED = 40


@pytest.fixture(scope="module", params=("mini", "mini-robust"))
def shipped(request: pytest.FixtureRequest) -> Clip:
    return load_clip(request.param)


@pytest.fixture(scope="module")
def mini() -> Clip:
    return load_clip("mini")


def test_the_embedded_names_are_what_ships() -> None:
    assert embedded_names() == ["mini", "mini-robust", "tiny"]


def test_the_card_names_the_fingerprint(shipped: Clip) -> None:
    assert f"`{shipped.fingerprint}`" in (BACKBONES / "MODEL_CARD.md").read_text()


def test_the_hardened_sister_descends_from_the_mini_that_ships_and_shares_its_words(mini: Clip) -> None:
    described = read_config("mini-robust")
    assert described["text_of"] == described["hardened"]["parent"]["arch"] == "mini"
    assert described["hardened"]["parent"]["fingerprint"] == mini.fingerprint
    sister = load_clip("mini-robust")
    assert sister.fingerprint != mini.fingerprint
    tokens = mini.tokenize(["a photo of a cat."])
    with torch.no_grad():
        torch.testing.assert_close(encode_text(sister, tokens), encode_text(mini, tokens), rtol=0, atol=0)


def test_what_one_serves_by_default_is_hardened() -> None:
    assert load_clip().fingerprint == load_clip("mini-robust").fingerprint


def test_a_backbone_is_encoded_as_open_clip_does(shipped: Clip) -> None:
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    tokens = shipped.tokenize(["a photo of a cat.", "a rocket"])
    with torch.no_grad():
        images = shipped.model.encode_image(
            (pixels - shipped.mean[:, None, None]) / shipped.std[:, None, None], normalize=True
        )
        assert (F.normalize(encode_image(shipped, pixels), dim=-1) - images).abs().max() <= 1e-6
        assert (
            F.normalize(encode_text(shipped, tokens), dim=-1)
            - shipped.model.encode_text(tokens, normalize=True)
        ).abs().max() <= 1e-6


@pytest.mark.parametrize(("picture", "label"), [("chelsea.png", "cat"), ("coffee.png", "cup of coffee")])
def test_photographs_larger_than_any_that_were_trained_on_are_recognised(
    shipped: Clip, picture: str, label: str
) -> None:
    data = (Path(str(skimage.data.__file__)).parent / picture).read_bytes()
    logits = zero_shot(shipped, Prompts(), LABELS)(
        load_pixels(data, shipped.image_size)[None], draw_seeds(0, 1)
    )
    assert LABELS[int(logits.argmax())] == label


def test_the_card_shows_the_answers_that_are_given(shipped: Clip) -> None:
    card = (BACKBONES / "MODEL_CARD.md").read_text()
    labels = tuple(re.findall(r"--labels '(.+)'", card)[0].split(","))
    rows = re.findall(r"!\[.+\]\((examples/.+)\) \| (.+) \| (.+) \| (.+) \|", card)
    assert {picture for picture, *_ in rows} == {
        f"examples/{path.name}" for path in (BACKBONES / "examples").iterdir()
    }
    classify = zero_shot(shipped, Prompts(), labels)
    for picture, truth, *answers in rows:
        pixels = load_pixels((BACKBONES / picture).read_bytes(), shipped.image_size)
        shares = classify(pixels[None], draw_seeds(0, 1)).softmax(dim=1)[0]
        answer = answers[("mini", "mini-robust").index(shipped.arch)]
        said = {label: float(share) for label, share in re.findall(r"([a-z][a-z ]*) ([\d.]+) %", answer)}
        given = labels[int(shares.argmax())]
        assert list(said) == list(dict.fromkeys((given, truth)))
        assert answer.startswith("**") == (given != truth)
        assert said == pytest.approx(
            {label: 100 * shares[labels.index(label)].item() for label in said}, abs=0.15
        )


@pytest.mark.data
def test_the_hardened_sister_stands_where_mini_falls(mini: Clip, shared_data: Path) -> None:
    from training.data.folders import load_data
    from training.data.sampling import balanced_subset

    pictures = load_data(shared_data / "cifar-10", "test")
    chosen = balanced_subset(pictures, ATTACKED, 0)
    pixels, targets = pictures.pixels(chosen, mini.image_size), pictures.targets[chosen]
    attack = PGD(ball=Linf(radius=2 / 255), steps=20, starts=("random",))
    standing: dict[str, int] = {}
    for clip in (mini, load_clip("mini-robust")):
        attacked = attack(
            label_score("cross_entropy", zero_shot(clip, Prompts(), pictures.labels), targets),
            pixels,
            draw_seeds(0, ATTACKED),
        )
        standing[clip.arch] = int((attacked.first_success < 0).sum())
    assert standing["mini-robust"] >= 0.4 * ATTACKED
    assert standing["mini"] <= 0.1 * ATTACKED


@pytest.mark.data
@pytest.mark.slow
def test_words_before_the_name_cost_at_most_three_points(mini: Clip, shared_data: Path) -> None:
    from training.data.folders import load_data
    from training.data.sampling import balanced_subset

    pictures = load_data(shared_data / "tiny-imagenet-200", "val")
    chosen = balanced_subset(pictures, PICTURES, 0)
    with torch.no_grad():
        encoder = TorchImageEncoder(mini)
        features = torch.cat(
            [encoder(pictures.pixels(rows, mini.image_size), None) for rows in chosen.split(64)]
        )
        accuracies = []
        for count in (0, 16, 32, 64):
            filler = (["this", "is", "what", "people", "said", "of", "it"] * 10)[:count]
            weights = text_weights(mini, Prompts(templates=(" ".join([*filler, "{}."]),)), pictures.labels)
            accuracies.append(
                ((features @ weights.T).argmax(dim=1) == pictures.targets[chosen]).float().mean().item()
            )
    assert max(accuracies) - min(accuracies) <= 0.03, accuracies


def test_who_loads_shipped_weights_is_told_their_terms() -> None:
    shipped = [name for name in embedded_names() if name != "tiny"]
    assert all((terms_of(name) or "").startswith("non-commercial research") for name in shipped)
    assert [terms_of(name) for name in ("tiny", "ViT-B-32")] == [None, None]
