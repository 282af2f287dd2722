"""The embedded backbones: what ships loads, fits its card, and knows everyday pictures."""

from importlib.resources import files
from pathlib import Path

import pytest
import skimage.data
import torch
from torch.nn import functional as F

from robustclip.backbones import embedded_names
from robustclip.classifier import TorchImageEncoder, text_weights, zero_shot
from robustclip.clip import Clip, load_clip
from robustclip.images import load_pixels
from robustclip.prompts import Prompts
from robustclip.seeds import draw_seeds
from robustclip.towers import encode_image, encode_text

BACKBONES = Path(str(files("robustclip.backbones")))
LABELS = ("cat", "dog", "rocket", "car", "cup of coffee", "flower", "guitar", "church", "bicycle", "fish")
PICTURES = 1000


@pytest.fixture(scope="module")
def mini() -> Clip:
    return load_clip("mini")


def test_the_embedded_names_are_what_ships() -> None:
    assert embedded_names() == ["mini", "tiny"]
    assert sum(path.stat().st_size for path in BACKBONES.glob("*.safetensors")) < 60_000_000


def test_the_card_names_the_fingerprint(mini: Clip) -> None:
    assert mini.fingerprint in (BACKBONES / "MODEL_CARD.md").read_text()


def test_mini_is_encoded_as_open_clip_does(mini: Clip) -> None:
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    tokens = mini.tokenize(["a photo of a cat.", "a rocket"])
    with torch.no_grad():
        images = mini.model.encode_image((pixels - mini.mean[:, None, None]) / mini.std[:, None, None], normalize=True)
        assert (F.normalize(encode_image(mini, pixels), dim=-1) - images).abs().max() <= 1e-6
        assert (F.normalize(encode_text(mini, tokens), dim=-1) - mini.model.encode_text(tokens, normalize=True)).abs().max() <= 1e-6


@pytest.mark.parametrize(("picture", "label"), [("chelsea.png", "cat"), ("coffee.png", "cup of coffee")])
def test_mini_recognises_photographs_larger_than_any_it_was_trained_on(mini: Clip, picture: str, label: str) -> None:
    data = (Path(str(skimage.data.__file__)).parent / picture).read_bytes()
    logits = zero_shot(mini, Prompts(), LABELS)(load_pixels(data, mini.image_size)[None], draw_seeds(0, 1))
    assert LABELS[int(logits.argmax())] == label


@pytest.mark.data
@pytest.mark.slow
def test_words_before_the_name_cost_at_most_three_points(mini: Clip, shared_data: Path) -> None:
    from training.data import load_data
    from training.sampling import balanced_subset

    pictures = load_data(shared_data / "tiny-imagenet-200", "val")
    chosen = balanced_subset(pictures, PICTURES, 0)
    with torch.no_grad():
        encoder = TorchImageEncoder(mini)
        features = torch.cat([encoder(pictures.pixels(rows, mini.image_size), None) for rows in chosen.split(64)])
        accuracies = []
        for count in (0, 16, 32, 64):
            filler = (["this", "is", "what", "people", "said", "of", "it"] * 10)[:count]
            weights = text_weights(mini, Prompts(templates=(" ".join([*filler, "{}."]),)), pictures.labels)
            accuracies.append(((features @ weights.T).argmax(dim=1) == pictures.targets[chosen]).float().mean().item())
    assert max(accuracies) - min(accuracies) <= 0.03, accuracies
