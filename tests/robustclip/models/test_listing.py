"""Every pair of architecture and tag of open_clip is served with capabilities, or refused with a reason."""

import subprocess
import sys
from collections import Counter

import open_clip
import pytest

from robustclip.models.capabilities import Capabilities
from robustclip.models.listing import architecture, pairs

WITHOUT_TRANSFORMERS = """
import sys
sys.modules["transformers"] = None
from importlib import util
found = util.find_spec
util.find_spec = lambda name, *more: None if name == "transformers" else found(name, *more)
from robustclip.models.architectures import configuration_of, missing_extra
import open_clip
for arch, tag in open_clip.list_pretrained():
    print(arch, tag, missing_extra(configuration_of(arch)), sep="|")
"""


@pytest.mark.slow
def test_every_pair_has_words_but_for_coca() -> None:
    pytest.importorskip("transformers")
    found = list(pairs())
    assert [(arch, tag) for arch, tag, _ in found] == open_clip.list_pretrained()
    refused = {arch: capabilities.words for arch, _, capabilities in found if capabilities.words}
    assert all(open_clip.get_model_config(arch).get("multimodal_cfg") for arch in refused)
    assert all(reason.startswith("CoCa") for reason in refused.values())
    had = Counter(name for _, _, capabilities in found for name in capabilities.names)
    assert had["words"] >= 190
    for arch, _, capabilities in found:
        config = open_clip.get_model_config(arch)
        assert config is not None
        native = "timm_model_name" not in config["vision_cfg"] and isinstance(
            config["vision_cfg"]["layers"], int
        )
        if not capabilities.words:
            assert ("visual prompts" in capabilities.names) == native, arch
            assert ("text prompts" in capabilities.names) == ("hf_model_name" not in config["text_cfg"]), arch
        assert all(reason for name, reason in capabilities.reasons.items() if name not in capabilities.names)


def test_without_transformers_140_pairs_remain_and_the_others_name_the_extra() -> None:
    script = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS], capture_output=True, text=True, check=True
    )
    lines = [line.split("|") for line in script.stdout.splitlines()]
    assert len(lines) == len(open_clip.list_pretrained())
    reasons = {(arch, tag): reason for arch, tag, reason in lines}
    served = [pair for pair, reason in reasons.items() if not reason and not pair[0].startswith("coca")]
    assert len(served) >= 140
    assert all("robustclip[hf]" in reason for reason in reasons.values() if reason)


def test_an_architecture_tells_its_size() -> None:
    found = architecture("ViT-B-32")
    assert found.capabilities == Capabilities()
    assert (found.parameters, found.image_size) == (151_277_313, 224)
    assert "openai" in found.tags
    assert architecture("coca_ViT-B-32").capabilities.words.startswith("CoCa")
