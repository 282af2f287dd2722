"""What a CLIP reads of a label, how a list of labels is written, and which labels mean the same."""

import unicodedata

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustclip.errors import InvalidInput
from robustclip.models.classifier import text_weights, zero_shot
from robustclip.models.clip import Clip
from robustclip.models.labels import as_read, check_labels, meanings, split_labels
from robustclip.models.prompts import Prompts
from robustclip.models.vocabulary import imagenet_names

_VISIBLE = regex.compile(r"\p{Prepended_Concatenation_Mark}")  # format characters that one sees
ODD = [
    mark
    for mark in map(chr, range(0x110000))
    if (unicodedata.category(mark) in ("Cf", "Cc", "Zs", "Zl", "Zp") or regex.match(r"\p{DI}", mark))
    and not _VISIBLE.match(mark)
]


def test_no_invisible_character_changes_what_is_read_inside_a_word() -> None:
    assert len(ODD) > 4000
    wrong = [f"U+{ord(mark):04X}" for mark in ODD if as_read(f"ca{mark}t") not in ("cat", "ca t")]
    assert wrong == []
    assert [as_read(f"{mark}cat{mark}") for mark in ODD if as_read(f"{mark}cat{mark}") != "cat"] == []


@pytest.mark.parametrize("mark", ["\u200b", "\u00ad", "\u2060", "\u200e", "\ufe0f", "\u200d", "\x07"])
def test_a_label_has_the_features_of_what_one_sees(tiny: Clip, mark: str) -> None:
    seen = text_weights(tiny, Prompts(), ("cat", "cup of coffee"))
    written = text_weights(tiny, Prompts(), (f"c{mark}at", f"cup of{mark} coffee{mark}"))
    assert torch.equal(written, seen)
    spaced = text_weights(tiny, Prompts(), ("cat", "cup\u00a0of\u3000\u2009coffee"))
    assert torch.equal(spaced, seen)


@pytest.mark.parametrize(
    "label",
    [
        "می\u200cخواهم",  # noqa: RUF001 (Persian: without the joiner another word)
        "क\u094d\u200dष",  # Devanagari, a half form
        "র\u200d\u09cdয",  # Bengali
        "👩🏽\u200d🚀",
        "❤\ufe0f\u200d🔥",
        "1\ufe0f\u20e3",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    ],
)
def test_joiners_stay_where_the_text_needs_them(label: str) -> None:
    assert as_read(label) == label


def test_ordinary_labels_have_the_tokens_that_they_always_had(tiny: Clip) -> None:
    names = [*imagenet_names(), "rock & roll", "café", "красная вещь", "猫", "❤️", "don\u2019t", "ﬁsh"]
    assert torch.equal(tiny.tokenize([as_read(name) for name in names]), tiny.tokenize(names))


@pytest.mark.parametrize("other", ["c\u200bat", "ca\u00adt", "cat\u200e", "\ufeffcat"])
def test_labels_that_look_alike_are_refused_naming_both(tiny: Clip, other: str) -> None:
    for labels in (("dog", "cat", other), ("dog", other, "cat")):
        for clip in (None, tiny):
            with pytest.raises(InvalidInput, match="is the same to CLIP as label 1") as refusal:
                check_labels(labels, clip)
            assert refusal.value.field == "labels/2"
    with pytest.raises(InvalidInput, match="is the same to CLIP"):
        zero_shot(tiny, Prompts(), ("sea horse", "Sea_Horse"))


@pytest.mark.parametrize(
    ("label", "complaint"), [("\u200b\u00ad", "empty"), ("_", "empty"), ("a\udcff", "no Unico")]
)
def test_labels_that_say_nothing_are_refused(label: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as refusal:
        check_labels(("cat", label))
    assert refusal.value.field == "labels/1"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat,dog", ("cat", "dog")),
        (" cat , cup of coffee ", ("cat", "cup of coffee")),
        ('["a cat, sitting","a dog"]', ("a cat, sitting", "a dog")),
        (' ["a \\"cat\\"", "a dog"] ', ('a "cat"', "a dog")),
        ('"a cat, sitting","a dog"', ("a cat, sitting", "a dog")),
        ('"a cat, sitting" , dog', ("a cat, sitting", "dog")),
        ('"say ""hi"", you",dog', ('say "hi", you', "dog")),
        ('12" pizza,dog', ('12" pizza', "dog")),
        ("a cat\nsitting,dog", ("a cat sitting", "dog")),
        ("cat,,dog", ("cat", "", "dog")),
        ("", ()),
    ],
)
def test_a_list_is_written_with_commas_quotes_or_as_json(text: str, labels: tuple[str, ...]) -> None:
    assert split_labels(text) == labels


@pytest.mark.parametrize(
    "text", ['["cat",', '["cat", 3]', '"a cat, dog', '"cat" sitting,dog', "[cat,dog]", "[" * 9999]
)
def test_a_list_that_is_not_well_formed_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput, match="Write it like") as refusal:
        split_labels(text, field="--labels")
    assert (refusal.value.field or "").startswith("--labels")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1), min_size=1))
def test_any_labels_survive_quoting(labels: list[str]) -> None:
    quoted = ",".join('"' + label.replace('"', '""') + '"' for label in labels)
    assert split_labels(quoted) == tuple(labels)


def test_labels_mean_the_equal_one_or_all_that_read_alike() -> None:
    known = ("cat", "sea horse", "Crane", "crane", "cafe\u0301")
    labels = ("Cat", "Sea_Horse", "SEA  horse\u200b", "crane", "CRANE", "caf\u00e9", "cow")
    assert meanings(labels, known) == [[0], [1], [1], [3], [2, 3], [4], []]
