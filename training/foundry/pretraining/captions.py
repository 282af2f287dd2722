"""The texts of pretraining: words, synonyms, captions, and fillers before them.

AdvPT puts 32 to 64 vectors before the class name. A text tower that only saw captions of six words would meet
positions that it never trained. So a filler of random length (word vectors or Gaussian noise) takes the place
of prompt vectors.
"""

import itertools
import re
from collections import Counter
from functools import cache

import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from robustclip.models.clip import Clip
from robustclip.models.vocabulary import imagenet_names, whole_words

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of {}.",
    "{}.",
    "{}",
    "a {}.",
    "the {}.",
    "a picture of a {}.",
    "a small photo of a {}.",
    "a bad photo of the {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
    "a low resolution photo of the {}.",
    "a cropped photo of a {}.",
    "a bright photo of the {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
    "itap of a {}.",
    "art of the {}.",
    "a {} in a video game.",
    "a origami {}.",
    "a photo of a {}, a kind of thing.",
)
MAX_FILLER = 64
SYNONYMS_A_NAME = 3  # rarer lemmas ("painter" for the cougar) would teach more wrong than right
# never in a caption, so that they can measure what the text tower makes of a new word for a known thing
HELD_OUT_SYNONYMS = {
    "sea slug": "nudibranch",
    "koala": "koala bear",
    "American lobster": "Maine lobster",
    "cougar": "puma",
    "ladybug": "ladybird",
    "arabian camel": "dromedary",
    "chimpanzee": "chimp",
    "backpack": "rucksack",
    "station wagon": "estate car",
    "binoculars": "field glasses",
    "bucket": "pail",
    "automated teller machine": "cash machine",
    "frying pan": "skillet",
    "limousine": "limo",
    "flagpole": "flagstaff",
    "refrigerator": "icebox",
    "trolleybus": "trolley coach",
    "German Shepherd Dog": "alsatian",
    "popsicle": "lollipop",
    "beach": "seashore",
}


def vocabulary(limit: int) -> tuple[str, ...]:
    """Plain English words of one token, most frequent first, for learning the sentence geometry."""
    plain = (word for word in whole_words() if re.fullmatch(r"[a-z]{3,}", word) and not _held_out(word))
    return tuple(itertools.islice(plain, limit))


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """WordNet's other words for ImageNet's names, from timm; none of two classes, none held out."""
    info, names = ImageNetInfo(), imagenet_names()
    lemmas = [
        info.label_name_to_description(info.index_to_label_name(index)).split(", ")
        for index in range(len(names))
    ]
    uses = Counter(lemma.lower() for group in lemmas for lemma in {*group})
    taken = {name.lower() for name in names}
    result: dict[str, tuple[str, ...]] = {}
    for name, group in zip(names, lemmas, strict=True):
        words = [
            lemma
            for lemma in group
            if uses[lemma.lower()] == 1 and lemma.lower() not in taken and not _held_out(lemma)
        ]
        result.setdefault(name, tuple(words[:SYNONYMS_A_NAME]))
    return result


def worded(texts: list[str], generator: torch.Generator, *, synonym_share: float = 0.0) -> list[str]:
    """Each text in a random template. Half of the remarks in parentheses (`crane (bird)`) are removed, and a
    share of the names is replaced by synonyms.
    """
    choices = torch.randint(len(TEMPLATES), (len(texts),), generator=generator).tolist()
    plain = (torch.rand(len(texts), generator=generator) < 0.5).tolist()
    luck = torch.rand(len(texts), 2, generator=generator).tolist()
    words: list[str] = []
    for text, bare, (chance, which) in zip(texts, plain, luck, strict=True):
        others = synonyms().get(text, ()) if chance < synonym_share else ()
        name = others[int(which * len(others))] if others else text
        words.append(re.sub(r" \(.*\)", "", name) if bare else name)
    return [TEMPLATES[choice].replace("{}", name) for choice, name in zip(choices, words, strict=True)]


def _held_out(text: str) -> bool:
    return any(word.lower() in text.lower() for word in HELD_OUT_SYNONYMS.values())


def filler(clip: Clip, length: int, generator: torch.Generator) -> Tensor | None:
    """[1, length, W] prompt vectors before all captions of a step, so that their states are computed once.

    A third each: words, noise of 0.02 as at the start of prompt learning, noise of the table's spread.
    """
    if length == 0:
        return None
    table = clip.model.token_embedding.weight
    kind = int(torch.randint(3, (), generator=generator))
    if kind == 0:
        return table[torch.randint(320, 40_000, (length,), generator=generator).to(table.device)][None]
    spread = 0.02 if kind == 1 else table.detach().std()
    return spread * torch.randn(1, length, clip.text_width, generator=generator).to(table.device)
