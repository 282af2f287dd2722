"""Labels: how a list of them is written as one text, what a CLIP reads of one, and which mean the same."""

import csv
import html
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import ftfy
import orjson
import regex

from robustclip.errors import InvalidInput

if TYPE_CHECKING:
    from robustclip.models.clip import Clip

# Invisible characters that change what the text says stay: a word or picture would become another one.
_MEANT = r"""
  (?<=\p{ccc=9})[\u200C\u200D] | [\u200C\u200D](?=\p{ccc=9})    # Indic conjuncts, beside a virama
# Persian: RFC 5892, appendix A.1
| (?<=[\p{JT=D}\p{JT=L}]\p{JT=T}{0,4})\u200C(?=\p{JT=T}{0,4}[\p{JT=R}\p{JT=D}])
| (?<=\p{Script=Mongolian})[\u180B-\u180F]                      # forms of Mongolian letters
# emoji made of several, and the colored forms of symbols: CLIP's vocabulary has both
| (?<=\p{Extended_Pictographic}[\uFE0F\p{EMod}]?)\u200D(?=\p{Extended_Pictographic})
| (?<=[\p{Extended_Pictographic}\p{EMod}])[\uFE0E\uFE0F] | (?<=[0-9\#*])\uFE0F(?=\u20E3)
| (?<=\U0001F3F4[\U000E0020-\U000E007E]{0,6})[\U000E0020-\U000E007F]    # flags of regions
"""
# Default-ignorable characters (soft hyphen, zero-width space, bidi marks, variation selectors, byte order
# mark), other format characters without ink, what is no character, and controls that are no white space.
_INVISIBLE = regex.compile(
    rf"(?:{_MEANT})(*SKIP)(*FAIL) | [\p{{DI}}\p{{NChar}}\uFFF9-\uFFFB\U00013430-\U0001343F]"
    r"| (?!\s)\p{Cc}",
    regex.VERBOSE,
)
# Controls that are no part of UTF-8 read as Latin-1; ftfy would make Windows characters of them.
_STRAY = regex.compile(r"(?<![\u00C2-\u00F4][\u0080-\u00BF]{0,2})[\u0080-\u009F]")
# The tokenizer's special tokens keep their underscores, so that they are refused where labels are tokenized.
_BLANK = regex.compile(r"<(?:start|end)_of_text>(*SKIP)(*FAIL)|[_\u2800]", regex.IGNORECASE)


def split_labels(text: str, *, field: str = "labels") -> tuple[str, ...]:
    """The labels of one text: a JSON list, or a list with commas as in CSV.

    In a list with commas spaces around a label don't count; a label with a comma stands in double quotes, and
    a double quote inside these is written twice. Raises InvalidInput for `field`.
    """
    hint = 'Write it like cat,dog or "a cat, sitting",dog or ["a cat, sitting", "dog"].'
    if text.lstrip().startswith("["):
        try:
            labels: list[Any] = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"not valid JSON: {error}.", field=field, help=hint) from error
        for index, label in enumerate(labels):
            if not isinstance(label, str):
                raise InvalidInput("expected a text.", field=f"{field}/{index}", help=hint)
        return tuple(labels)
    tight = regex.sub(r'"\s+(?=,|$)', '"', text.strip())  # no space between a closing quote and its comma
    try:
        (row,) = csv.reader([regex.sub(r"[\r\n]", " ", tight)], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise InvalidInput(f"not a list with commas: {error}.", field=field, help=hint) from error
    return tuple(label.strip() for label in row)


@lru_cache(maxsize=8192)
def as_read(label: str) -> str:
    """The text that a CLIP is given for a label.

    Broken encodings and HTML entities are repaired as CLIP's tokenizer does, characters are composed (NFC),
    those that nobody sees are left out, and an underscore or any white space is one space. Joiners stay where
    their script needs them.
    """
    if label.isascii() and label.isprintable() and "&" not in label:
        text = label
    else:
        text = html.unescape(html.unescape(ftfy.fix_text(_STRAY.sub("", label))))
        text = _INVISIBLE.sub("", text)
    return " ".join(_BLANK.sub(" ", text).split())


def meanings(labels: Sequence[str], known: Sequence[str]) -> list[list[int]]:
    """For each label the indices of the known ones that it can mean: the equal one, else all that read alike
    when capitals, too, make no difference.
    """
    equal = {label: index for index, label in enumerate(known)}
    if all(label in equal for label in labels):
        return [[equal[label]] for label in labels]
    alike: dict[str, list[int]] = {}
    for index, label in enumerate(known):
        alike.setdefault(as_read(label).lower(), []).append(index)
    return [[equal[label]] if label in equal else alike.get(as_read(label).lower(), []) for label in labels]


def check_labels(labels: tuple[str, ...], clip: "Clip | None" = None, *, least: int = 2) -> None:
    """InvalidInput unless there are `least` or more distinct, non-empty labels, to a reader and to `clip`;
    the field names the first offender.
    """
    if len(labels) < least:
        raise InvalidInput(
            f"expected at least {least} labels, found {len(labels)}.",
            field="labels",
            help="Name the alternatives to choose from.",
        )
    seen: dict[str, int] = {}
    for index, label in enumerate(labels):
        if regex.search(r"\p{Cs}", label):
            raise InvalidInput(f"{label!r:.80} is no Unicode text.", field=f"labels/{index}")
        if not as_read(label):
            raise InvalidInput("a label is empty.", field=f"labels/{index}")
        if label in seen:
            raise InvalidInput(
                f"{label!r} repeats label {seen[label]}.",
                field=f"labels/{index}",
                help="Give each label once.",
            )
        seen[label] = index
    read: dict[object, int] = {}
    texts = [as_read(label) for label in labels]
    for index, text in enumerate(texts if clip is None else map(tuple, clip.tokenize(texts).tolist())):
        first = read.setdefault(text, index)
        if first != index:
            raise InvalidInput(
                f"{labels[index]!r:.80} is the same to CLIP as label {first}, {labels[first]!r:.80}.",
                field=f"labels/{index}",
                help="Give each label once: capitals, underscores, spaces around words and characters that "
                "nobody sees make no difference.",
            )
