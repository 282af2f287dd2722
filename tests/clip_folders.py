"""Small CLIPs with seeded random weights, written as folders for `local-dir:`, tokenizer included."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from robustclip.models.architectures import build, configuration_of, pictures_of_tag

WORDS = (
    *("a", "photo", "of", "the", "cat", "dog", "rocket", "teapot", "car", "fish", "bird", "ship", "deer"),
    *("frog", "horse", "truck", ",", ".", "red", "small", "blue", "green", "thing"),
)

_TEXT = {"layers": 2, "width": 64, "heads": 2}
_IMAGE = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}

SIGLIP: dict[str, Any] = {  # as ViT-B-16-SigLIP, with timm's smallest tower of that shape
    "embed_dim": 96,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit3",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        **_TEXT,
        "context_length": 64,
        "vocab_size": 64,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-06},
    },
}
CLIPA: dict[str, Any] = {  # as ViT-L-14-CLIPA
    "embed_dim": 32,
    "vision_cfg": {**_IMAGE, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "text_cfg": {
        **_TEXT,
        "context_length": 32,
        "vocab_size": 64,
        "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True},
        "pool_type": "last",
        "no_causal_mask": True,
    },
}
SIGLIP_PICTURES = pictures_of_tag("ViT-B-16-SigLIP", "webli")
CLIPA_PICTURES = pictures_of_tag("ViT-L-14-CLIPA", "datacomp1b")


def cut_down(config: Mapping[str, Any], *, image_size: int = 32, embed_dim: int = 64) -> dict[str, Any]:
    """The configuration with few layers, small width and vocabulary; kinds, pooling and mask are kept."""
    small = deepcopy(dict(config))
    vision, text = small["vision_cfg"], small["text_cfg"]
    small["embed_dim"] = embed_dim
    if isinstance(vision.get("layers"), list):
        vision |= {"layers": [1, 1, 1, 1], "width": 16}
    elif "timm_model_name" not in vision:
        vision |= _IMAGE
    vision["image_size"] = image_size
    text |= _TEXT
    if text.get("hf_tokenizer_name"):
        text["vocab_size"] = 64
    return small


def write_clip(
    folder: Path,
    config: Mapping[str, Any],
    pictures: Mapping[str, Any],
    *,
    tokenizer: str = "",
    seed: int = 0,
) -> str:
    """Write configuration, weights and tokenizer (`t5`, `bert`, `roberta`, or CLIP's own); its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": dict(config), "preprocess_cfg": dict(pictures)})
    )
    name = f"local-dir:{folder}"
    if tokenizer:
        write_tokenizer(folder, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(configuration_of(name))
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return name


def write_tokenizer(folder: Path, kind: str) -> None:
    """A tokenizer of whole words that sets special tokens as T5 (SigLIP), BERT (CLIPA) or RoBERTa does."""
    specials = {
        "t5": ["<pad>", "</s>", "<unk>"],
        "bert": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
        "roberta": ["<s>", "<pad>", "</s>", "<unk>"],
    }[kind]
    ends = {"t5": ([], ["</s>"]), "bert": (["[CLS]"], ["[SEP]"]), "roberta": (["<s>"], ["</s>"])}[kind]
    named = {
        "t5": {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
        "bert": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
        "roberta": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    }[kind]
    vocabulary = {token: index for index, token in enumerate([*specials, *WORDS])}
    single = [
        *({"SpecialToken": {"id": token, "type_id": 0}} for token in ends[0]),
        {"Sequence": {"id": "A", "type_id": 0}},
        *({"SpecialToken": {"id": token, "type_id": 0}} for token in ends[1]),
    ]
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, token in enumerate(specials)
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single,
            "special_tokens": {
                token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
                for token in [*ends[0], *ends[1]]
            },
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": named["unk_token"]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named})
    )
