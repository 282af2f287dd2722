"""The story of a CLIP of another kind: the shapes of SigLIP and CLIPA, from a folder through every door."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from clip_folders import CLIPA, CLIPA_PICTURES, SIGLIP, SIGLIP_PICTURES, write_clip
from pictures import write_pictures
from serving import picture, serving

from robustclip.images import decode_image
from robustclip.models import onnx
from robustclip.models.clip import Clip, load_clip
from robustclip.models.towers import encode_image
from robustclip.preprocessing import to_pixels
from training.learning.tuning.command import main as train
from training.measuring.evaluation.command import main as evaluate

LABELS = ["cat", "dog", "rocket"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["siglip", "clipa"])
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "siglip":
        return write_clip(folder, SIGLIP, SIGLIP_PICTURES, tokenizer="t5")
    return write_clip(folder, CLIPA, CLIPA_PICTURES, tokenizer="bert")


@pytest.fixture(scope="module")
def clip(name: str) -> Clip:
    return load_clip(name)


def test_one_setting_serves_it_and_probes_it(name: str, clip: Clip, tmp_path: Path) -> None:
    with serving(tmp_path, clip={"arch": name}) as running:
        info = running.client.get("/info").json()
        assert info["preprocessing"]["resize_mode"] == "squash"
        assert info["preprocessing"]["mean"] == pytest.approx(clip.mean.tolist())
        assert info["capabilities"]["words"] is None
        assert (info["capabilities"]["visual prompts"] is None) == (clip.visual_width is not None)
        sent = {"labels": LABELS}
        answer = running.client.post("/classify", files={"image": picture()}, data=sent).json()
        features = torch.nn.functional.normalize(
            encode_image(clip, to_pixels(decode_image(picture()), clip.preprocessing)[None]), dim=-1
        )
        words = clip.model.encode_text(
            clip.tokenize([f"a photo of a {label}." for label in LABELS]), normalize=True
        )
        logits = (clip.logit_scale * features @ words.T)[0]
        found = {entry["label"]: entry["logit"] for entry in answer["results"][0]["predictions"]}
        differences = torch.tensor([found[label] for label in LABELS]) - logits
        assert float(differences.std()) < 0.02, "the logits of open_clip, up to a constant"
        sent = {"labels": LABELS, "steps": "2", "eps": "8/255"}
        report = running.client.post("/probe", files={"image": picture()}, data=sent).json()["reports"][0]
        assert report["verdict"]["value"] in ("broken", "not-broken-within-budget", "inconclusive")
        assert report["input"]["resolution"][0] == clip.image_size


def test_it_is_exported_and_agrees_with_torch(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert onnx.main(["--backbone", name, "--path", str(tmp_path / "graph.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["graphs"][0]["feature"] <= onnx.TOLERANCE


def test_a_prompt_set_is_trained_for_it_and_evaluated(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", train=4, test=2)
    places = ["--backbone", name, "--data", str(pictures), "--store", str(tmp_path / "store")]
    places += ["--runs", str(tmp_path / "runs")]
    learning = ["--objective.kind", "coop", "--objective.vectors", "3", "--objective.epochs", "1"]
    assert train([*places, "--name", "learned", *learning, "--activate", "--json"]) == 0
    capsys.readouterr()
    options = [
        "--prompt-set",
        "handcrafted,learned",
        "--threat",
        "clean,T2",
        "--eps",
        "2/255",
        "--limit",
        "4",
    ]
    assert evaluate([*places, *options]) == 0
    assert "learned" in capsys.readouterr().out


def test_a_folder_is_all_it_takes(name: str, clip: Clip, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(name.removeprefix("local-dir:"), moved)
    again = load_clip(f"local-dir:{moved}")
    assert again.fingerprint == clip.fingerprint
    assert (again.arch, again.pretrained) == ("local-dir:elsewhere", "local-dir")
