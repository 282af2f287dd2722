"""What `import robustclip` offers: names that are there when they are used, answers that show themselves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image
from probing import LABELS, SPARED, picture
from torch import nn

import robustclip
from prompts_store.store import SHIPPED
from robustclip.deployed import DeployedClassifier
from robustclip.errors import InvalidInput, UnknownPromptSet
from robustclip.images import pixels_to_png
from robustclip.models.clip import Clip

SOURCE = Path(robustclip.__file__)


@pytest.fixture(scope="module")
def classifier(tiny: Clip) -> DeployedClassifier:
    return robustclip.deploy(tiny, robustclip.load_prompts("handcrafted", tiny), LABELS)


def for_type_checkers() -> Iterator[tuple[str, str]]:
    """(name, module) of the imports under `if TYPE_CHECKING`."""
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                yield from ((alias.name, statement.module or "") for alias in statement.names)


def test_editors_see_the_names_that_there_are() -> None:
    assert dict(for_type_checkers()) == robustclip._FACE
    assert sorted(robustclip.__all__) == sorted(robustclip._FACE)
    assert set(robustclip.__all__) <= set(dir(robustclip))
    for name, module in robustclip._FACE.items():
        assert getattr(robustclip, name) is getattr(import_module(module), name)


def test_no_module_of_the_package_hides_a_name() -> None:
    modules = {path.stem for path in SOURCE.parent.iterdir()}
    assert not modules & set(robustclip.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = robustclip.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'PIL', 'numpy', 'pydantic', 'prompts_store'} & set(sys.modules)"
    script = f"import sys, robustclip, robustclip.cli; dir(robustclip); print({heavy})"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout == "set()\n"


def test_a_picture_may_come_in_any_form(classifier: DeployedClassifier, tiny: Clip, tmp_path: Path) -> None:
    pixels = picture(tiny)
    path = tmp_path / "picture.png"
    path.write_bytes(pixels_to_png(pixels))
    first = classifier(pixels)
    assert sum(score for _, score in first.predictions) == pytest.approx(1)
    assert first.label == first.predictions[0][0]
    with Image.open(path) as opened:
        answers = [classifier(each) for each in (path, str(path), path.read_bytes(), opened, pixels[None])]
    assert answers == [first] * 5
    with pytest.raises(InvalidInput, match="one picture"):
        classifier(pixels.expand(2, -1, -1, -1))


def test_a_pil_picture_is_decoded_like_a_file(classifier: DeployedClassifier, tmp_path: Path) -> None:
    """Turned upright, and laid over white where it is transparent."""
    layered = Image.new("RGBA", (60, 40), (200, 10, 10, 120))
    exif = Image.Exif()
    exif[0x0112] = 6
    layered.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert classifier(opened) == classifier(tmp_path / "turned.png")


def test_a_probe_shows_its_verdict_its_page_and_its_witness(
    classifier: DeployedClassifier, tiny: Clip
) -> None:
    report = robustclip.probe(classifier, picture(tiny), eps="16/255")
    assert str(report) == f"broken: {report.verdict.sentence}"
    assert report.victim.prompt_set.startswith("handcrafted@")
    assert report.witness is not None
    assert classifier(report.witness).label != report.input.clean.label
    page = report._repr_html_()
    assert page.startswith("<iframe")
    assert "robustclip.probe(classifier, picture, eps=&amp;#39;16/255&amp;#39;)" in page
    standing = robustclip.probe(
        classifier, picture(tiny), attacks=[robustclip.PGD(ball=robustclip.Linf(radius=SPARED), steps=1)]
    )
    assert standing.witness is None


def test_a_report_that_shows_itself_is_written_like_any_other(
    classifier: DeployedClassifier, tiny: Clip
) -> None:
    first, again = (robustclip.probe(classifier, picture(tiny), eps="1/255") for _ in range(2))
    assert first == again
    written = first.model_dump(mode="json", by_alias=True)
    assert written["schema"] == "robustclip.probe/1"
    assert not any(name.startswith("_") for name in written)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"eps": "-1"}, "attacks/0/ball/radius"),
        ({"eot": 0}, "eot"),
        ({"attack": 1}, "attack"),
        ({"eps": "4/255", "attacks": ()}, "attacks"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    classifier: DeployedClassifier, tiny: Clip, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        robustclip.probe(classifier, picture(tiny), **options)  # pyright: ignore[reportArgumentType]
    assert refusal.value.field == field


def test_a_certificate_shows_its_votes(tiny: Clip) -> None:
    prompts = robustclip.load_prompts("handcrafted", tiny)
    smoothed = robustclip.deploy(tiny, prompts, LABELS, defense="smoothing:0.05")
    found = robustclip.certify(smoothed, picture(tiny), n=100, n0=10)
    assert (found.sigma, found.served) == (0.05, True)
    assert f"{found.hits} of 100" in found._repr_html_()
    assert not robustclip.certify(smoothed, picture(tiny), sigma=0.1, n=20, n0=10).served
    assert "of 100 votes" not in str(smoothed(picture(tiny)))


def test_any_module_can_be_attacked_and_measured() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    pixels = torch.rand(4, 3, 8, 8)
    targets = module(pixels).argmax(dim=1)
    pgd = robustclip.PGD(ball=robustclip.Linf(radius="32/255"), steps=10)
    with pytest.raises(InvalidInput, match="training mode"):
        robustclip.attack(module, pixels, targets, pgd)
    attacked = robustclip.attack(module.eval(), pixels, targets, pgd)
    assert bool((attacked.margin > 0).all())
    assert bool((module(attacked.pixels).argmax(dim=1) != targets).all())
    assert float((attacked.pixels - pixels).abs().max()) <= 32 / 255 + 1e-6
    assert module[1].weight.grad is None
    clean = robustclip.measure(module, [(pixels[:2], targets[:2]), (pixels[2:], targets[2:])])
    assert clean.correct.tolist() == [True] * 4
    assert robustclip.measure(module, [(pixels, targets)], attack=pgd).interval.value == 0
    assert "0.0% of 4 right" in str(robustclip.measure(module, [(pixels, targets)], attack=pgd))
    with pytest.raises(InvalidInput, match="logits"):
        robustclip.attack(nn.Identity().eval(), pixels, targets, pgd)


def test_a_deployed_decision_is_measured_through_its_defense(tiny: Clip) -> None:
    prompts = robustclip.load_prompts("handcrafted", tiny)
    subject = robustclip.deploy(tiny, prompts, LABELS, defense="bit_depth:4,resize_pad")
    pixels = torch.stack([picture(tiny, seed) for seed in range(4)])
    targets = torch.zeros(4, dtype=torch.int64)
    pgd = robustclip.PGD(ball=robustclip.Linf(radius="16/255"), steps=3)
    clean = robustclip.measure(subject, [(pixels, targets)])
    attacked = robustclip.measure(subject, [(pixels, targets)], attack=pgd, eot=2)
    assert int(attacked.correct.sum()) <= int(clean.correct.sum())


def test_prompts_come_by_name_or_from_a_file(tiny: Clip) -> None:
    shipped = robustclip.load_prompts("handcrafted", tiny)
    (path,) = SHIPPED.glob("any/handcrafted/*.safetensors")
    assert robustclip.load_prompts(path, tiny).version == shipped.version
    with pytest.raises(UnknownPromptSet):
        robustclip.load_prompts("no-such-set", tiny)


def test_words_in_a_notebook_are_escaped(tiny: Clip) -> None:
    odd = robustclip.deploy(tiny, robustclip.Prompts(), ["<b>cat</b>", "dog"])
    assert "<b>" not in odd(picture(tiny))._repr_html_()
    assert odd.prompt_set == "unnamed"
