"""The CLIP (weights, fingerprint, vocabulary), its prompts, towers with prompts, the zero-shot classifier."""

from robustclip.models.classifier import (
    Defended,
    LabelCache,
    TorchImageEncoder,
    ZeroShotClassifier,
    text_weights,
    zero_shot,
)
from robustclip.models.clip import Clip, load_clip
from robustclip.models.labels import meanings
from robustclip.models.prompts import HANDCRAFTED_TEMPLATE, Prompts, check_template
from robustclip.models.scoring import Scoring, scoring_for
from robustclip.models.text import native_text
from robustclip.models.towers import check_prompts, encode_image, encode_patches, has_stem, patch_tokens
from robustclip.models.vocabulary import imagenet_names, imagenet_templates

__all__ = [
    "HANDCRAFTED_TEMPLATE",
    "Clip",
    "Defended",
    "LabelCache",
    "Prompts",
    "Scoring",
    "TorchImageEncoder",
    "ZeroShotClassifier",
    "check_prompts",
    "check_template",
    "encode_image",
    "encode_patches",
    "has_stem",
    "imagenet_names",
    "imagenet_templates",
    "load_clip",
    "meanings",
    "native_text",
    "patch_tokens",
    "scoring_for",
    "text_weights",
    "zero_shot",
]
