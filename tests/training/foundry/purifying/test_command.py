"""`robustclip train-purifiers`: from a folder of pictures to networks that defend, and what they are
worth.
"""

import json
from pathlib import Path

import pytest
import torch
from company import run_two

from robustclip.defenses import bind_chain, parse_defenses
from robustclip.errors import DataRefused, InvalidInput
from robustclip.models.classifier import TorchImageEncoder
from robustclip.models.clip import Clip
from robustclip.purifiers import digest_of
from robustclip.seeds import draw_seeds
from training.data.folders import load_data
from training.foundry.purifying.command import main

SHORT = [
    *(
        "--backbone",
        "tiny",
        "--samples",
        "32",
        "--batch",
        "16",
        "--size",
        "16",
        "--decoded",
        "32",
        "--check-pictures",
        "3",
    ),
    *("--bf16", "false", "--cpu"),
]


@pytest.fixture(scope="module")
def trained(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("purifiers")
    shapes = {"super_resolver": {"width": 8, "blocks": 1}, "denoiser": {"widths": [8], "middle": 0}}
    for kind, shape in shapes.items():
        own = [
            "--only",
            kind,
            "--network",
            json.dumps({"kind": kind, **shape}),
            "--run",
            str(folder / "run"),
            "--out",
            str(folder),
        ]
        assert main([*SHORT, *own, "--data", str(picture_folder)]) == 0
    return folder


def test_what_is_written_defends_by_its_path(trained: Path, picture_folder: Path, tiny: Clip) -> None:
    pixels = load_data(picture_folder, "test").pixels([0, 1], tiny.image_size)
    links = [
        {"kind": "super_resolution", "weights": str(trained / "super_resolver.json")},
        {"kind": "diffusion", "weights": str(trained / "denoiser.json")},
    ]
    purified = bind_chain(parse_defenses(links), TorchImageEncoder(tiny))(pixels, draw_seeds(0, 2))
    assert purified.shape == pixels.shape


def test_the_file_says_how_it_was_made(trained: Path, tiny: Clip) -> None:
    for kind in ("super_resolver", "denoiser"):
        description = json.loads((trained / f"{kind}.json").read_text())
        assert description["network"]["kind"] == kind
        assert description["recipe"]["samples"] == 32
        assert description["kept_back"]["backbone"] == tiny.fingerprint
        assert "untouched" in description["kept_back"]["readings"]


def test_both_are_measured_on_any_pictures(
    trained: Path, picture_folder: Path, tiny: Clip, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "--measure",
        "--data",
        str(picture_folder),
        "--split",
        "test",
        "--limit",
        "6",
        "--weights",
        str(trained),
        "--backbone",
        "tiny",
        "--cpu",
    ]
    assert main([*asked, "--json"]) == 1  # nobody learns anything in two steps
    found = json.loads(capsys.readouterr().out)
    assert found["command"].startswith("robustclip train-purifiers --measure")
    assert found["backbone"]["fingerprint"] == tiny.fingerprint
    assert set(found["networks"]) == {"super_resolver", "denoiser"}
    denoiser = found["networks"]["denoiser"]
    assert denoiser["pictures"] == 6
    assert denoiser["digest"] == digest_of("denoiser", str(trained / "denoiser.json"))
    assert set(denoiser["readings"]) == {
        "untouched",
        "noisy_0.1",
        "denoised_0.1",
        "noisy_0.25",
        "denoised_0.25",
        "purified",
    }
    assert denoiser["no_better"]
    main(asked)
    assert "bicubic" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_get_the_weights_of_one(picture_folder: Path, tmp_path: Path) -> None:
    shape = {"kind": "super_resolver", "width": 8, "blocks": 1}
    asked = [
        *SHORT,
        "--samples",
        "64",
        "--batch",
        "32",
        "--only",
        "super_resolver",
        "--network",
        json.dumps(shape),
        "--data",
        str(picture_folder),
    ]
    assert main([*asked, "--run", str(tmp_path / "one"), "--out", str(tmp_path)]) == 0
    two = [*asked, "--run", str(tmp_path / "two"), "--out", str(tmp_path)]
    run_two(
        "import sys; from training.foundry.purifying.command import main; sys.exit(main(sys.argv[1:]))", *two
    )
    found = [
        torch.load(tmp_path / run / "super_resolver" / "checkpoint.pt", weights_only=True)["network"]
        for run in ("one", "two")
    ]
    alone, together = (weights["exit.weight"] for weights in found)  # which start from 0
    assert (alone - together).norm() < 0.1 * alone.norm()


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        (["--samples", "0"], InvalidInput, "--samples"),
        (["--only", "denoiser", "--network", '{"kind": "super_resolver"}'], InvalidInput, "--network"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(
    options: list[str], error: type[InvalidInput], field: str, picture_folder: Path
) -> None:
    with pytest.raises(error) as refusal:
        main(["--backbone", "tiny", "--data", str(picture_folder), *options])
    assert (refusal.value.field or "").startswith(field)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="no split"):
        main([*SHORT, "--data", str(tmp_path), "--run", str(tmp_path / "run")])
