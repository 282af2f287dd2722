"""`robustclip harden`: from a folder of pictures to a backbone that loads, alone and in company."""

import json
from pathlib import Path

import pytest
import torch
from company import run_two
from safetensors.torch import load_file

from robustclip.errors import UnsupportedClip
from robustclip.models.clip import Clip, load_clip
from training.foundry.hardening.command import main

SHORT = [
    "--backbone",
    "tiny",
    "--objective",
    "tecoa",
    "--samples",
    "64",
    "--batch",
    "32",
    "--bf16",
    "false",
    "--check-pictures",
    "3",
    "--cpu",
]


def options(data: Path, folder: Path) -> list[str]:
    return [*SHORT, "--data", str(data), "--run", str(folder / "run"), "--out", str(folder / "tiny-robust")]


@pytest.fixture(scope="module")
def hardened(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hardened")
    assert main(options(picture_folder, folder)) == 0
    return folder


def test_what_is_written_loads_again_with_the_text_tower_of_its_parent(hardened: Path, tiny: Clip) -> None:
    assert all(name.startswith("visual.") for name in load_file(hardened / "tiny-robust.safetensors"))
    child = load_clip(str(hardened / "tiny-robust.json"))
    assert child.arch == "tiny-robust"
    assert child.fingerprint != tiny.fingerprint
    best = torch.load(hardened / "run" / "best.pt", weights_only=True)["visual"]
    for name, tensor in child.model.state_dict().items():
        if name.startswith("visual."):
            torch.testing.assert_close(tensor, best[name.removeprefix("visual.")], rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(tensor, tiny.model.state_dict()[name]), name


def test_the_file_says_how_it_was_made(hardened: Path, tiny: Clip) -> None:
    description = json.loads((hardened / "tiny-robust.json").read_text())
    assert description["text_of"] == "tiny"
    assert description["hardened"]["recipe"]["objective"] == "tecoa"
    assert description["hardened"]["parent"] == {
        "arch": "tiny",
        "pretrained": "embedded",
        "fingerprint": tiny.fingerprint,
    }


@pytest.mark.slow
def test_a_hardened_backbone_can_be_hardened_further(
    hardened: Path, picture_folder: Path, tmp_path: Path
) -> None:
    again = options(picture_folder, tmp_path)
    again[again.index("tiny")] = str(hardened / "tiny-robust.json")
    assert main(again) == 0
    assert json.loads((tmp_path / "tiny-robust.json").read_text())["text_of"] == "tiny"
    load_clip(str(tmp_path / "tiny-robust.json"))


@pytest.mark.slow
def test_any_labelled_pictures_can_be_distilled(picture_folder: Path, tmp_path: Path) -> None:
    chosen = ["distilled" if word == "tecoa" else word for word in options(picture_folder, tmp_path)]
    assert main(chosen) == 0
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert {"attacked", "teacher", "direction"} <= line["loss"].keys()


def test_a_json_that_is_no_backbone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"embed_dim": 3}')
    for name in ("odd.json", "absent.json"):
        with pytest.raises(UnsupportedClip, match="can't be read as a backbone"):
            load_clip(str(tmp_path / name))


@pytest.mark.slow
def test_two_processes_get_the_weights_of_one(
    hardened: Path, tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    run_two(
        "import sys; from training.foundry.hardening.command import main; sys.exit(main(sys.argv[1:]))",
        *options(picture_folder, tmp_path),
    )
    one, two = (
        torch.load(folder / "run" / "checkpoint.pt", weights_only=True)["visual"]
        for folder in (hardened, tmp_path)
    )
    start = tiny.model.visual.state_dict()
    apart, moved = (
        torch.stack([(one[name] - other[name]).norm() for name in one]).norm() for other in (two, start)
    )
    assert (
        apart < 0.02 * moved
        # rounding, which a sign of the attack or Adam's quotient can enlarge; other pictures would part them
        # by about `moved`
    )
