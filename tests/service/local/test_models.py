"""`robustclip models`: names, capabilities and costs, from built modules."""

import json

import pytest

from robustclip.errors import InvalidInput
from service.local.models import main


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, object]]:
    assert main([*options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["architectures"]


def test_it_says_what_a_clip_can_do_and_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    tiny, large = listed(capsys, "tiny", "ViT-B-32")
    assert (tiny["name"], tiny["weights_here"], tiny["tags"]) == ("tiny", ["embedded"], [])
    assert large["capabilities"] == ["words", "text prompts", "visual prompts"]
    assert (large["image_size"], large["context_length"]) == (224, 77)
    assert large["parameters"] == 151_277_313
    assert large["memory"]["weights"] == 4 * 151_277_313  # type: ignore[index]
    assert "openai" in large["tags"]  # type: ignore[operator]


def test_what_a_clip_lacks_has_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    (coca,) = listed(capsys, "coca_ViT-B-32")
    assert coca["capabilities"] == []
    assert str(coca["reasons"]["words"]).startswith("CoCa")  # type: ignore[index]
    assert main(["RN50"]) == 0
    shown = capsys.readouterr().out
    assert "no visual prompts: its image tower (ModifiedResNet)" in shown
    assert "openai" in shown


def test_a_pattern_takes_many_and_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    names = [row["name"] for row in listed(capsys, "t?ny", "RN50-*")]
    assert names == ["tiny", "RN50-quickgelu"]
    with pytest.raises(InvalidInput, match="no CLIP is named 'ViT-Z'"):
        main(["ViT-Z"])


def test_a_pace_is_shown_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    (tiny,) = listed(capsys, "tiny", "--pace")
    assert tiny["pace"]["forward"] > tiny["pace"]["gradient"] > 0  # type: ignore[index]
    assert main(["tiny", "--pace"]) == 0
    assert "gradient/s" in capsys.readouterr().out
