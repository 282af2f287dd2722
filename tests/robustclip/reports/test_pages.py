"""The page of a report: whole, well-formed, honest about what the report holds, and safe whatever people call
their labels.
"""

import re
from html.parser import HTMLParser

import pytest
import torch
from probed import Probed, probed

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.reports.pages import probe_page

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg><b>&amp;",
    "{{ 7 * 7 }}",
)
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Strict(HTMLParser):
    """Collects what a page holds; fails on a tag that closes another one."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def of(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def page(found: Probed, picture: str = "photo.jpg", command: str = "robustclip probe photo.jpg") -> str:
    return probe_page(found.report, clean=found.clean, picture=picture, command=command)


@pytest.fixture(scope="module")
def broken(tiny: Clip) -> Probed:
    return probed(tiny, radii=(0.5, 2, 8), score="cross_entropy")


@pytest.fixture(scope="module")
def defended(tiny: Clip) -> Probed:
    return probed(tiny, defense="bit_depth:4,resize_pad")


def test_the_verdict_comes_first_and_everything_else_stands_under_a_heading(broken: Probed) -> None:
    seen = Strict(page(broken))
    headings = [tag for tag, _ in seen.elements if tag in ("h1", "h2", "h3")]
    assert headings == ["h1", *["h2"] * (len(headings) - 1)]
    assert seen.text.index(broken.report.verdict.sentence) < seen.text.index("What the classifier saw")
    for heading in (
        "What was tried",
        "How the attacks went",
        "Can the result be trusted?",
        "What was attacked",
        "Ask again",
    ):
        assert heading in seen.text


def test_a_page_needs_nothing_from_elsewhere(broken: Probed) -> None:
    text = page(broken)
    seen = Strict(text)
    references = [
        each[name]
        for _, each in seen.elements
        for name in ("src", "href", "action", "data", "poster", "srcset")
        if name in each
    ]
    assert references
    assert all(reference.startswith("data:image/png;base64,") for reference in references)
    assert not re.search(r"url\(|@import|<script|<link|<iframe|javascript:", text)
    assert [each["content"] for each in seen.of("meta") if each.get("http-equiv")] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ]


def test_pictures_are_told_in_words(broken: Probed) -> None:
    seen = Strict(page(broken))
    texts = [each["alt"] for each in seen.of("img")]
    assert len(texts) == 3
    assert "untouched" in texts[0]
    assert "change" in texts[2]
    assert "magnified" in texts[2]
    assert seen.text.count("Heat map over the picture") == 1
    assert len([each for each in seen.of("svg") if each.get("role") == "img"]) == len(seen.of("svg"))


def test_several_radii_make_a_curve_and_one_does_not(broken: Probed, defended: Probed) -> None:
    assert "Margin by radius" in page(broken)
    assert "Margin by radius" not in page(defended)
    assert "Score along the attack" in page(broken)
    assert "Score along the attack" not in page(defended)


def test_static_and_adaptive_stand_side_by_side_with_the_chain(defended: Probed) -> None:
    text = Strict(page(defended)).text
    for fact in (
        "everything but the defense",
        "everything, the defense included, averaging 2 draws",
        "bit_depth",
        "resize_pad",
        "of 8 draws",
    ):
        assert fact in text


@pytest.mark.parametrize("defense", ["none", "resize_pad"])
def test_markup_in_labels_names_and_commands_stays_text(tiny: Clip, defense: str) -> None:
    found = probed(tiny, labels=HOSTILE, defense=defense)
    seen = Strict(page(found, picture=HOSTILE[0], command=f"robustclip probe {HOSTILE[1]}"))
    assert not seen.of("script", "b")
    assert len(seen.of("img")) == 3
    assert not [name for _, each in seen.elements for name in each if name.startswith("on")]
    for label in HOSTILE:
        assert label in seen.text


def test_a_change_that_no_png_can_hold_is_said_not_shown(tiny: Clip) -> None:
    found = probed(tiny, radii=(0.9,))
    record = found.report.attacks[0]
    told = "Only the float pixels change the decision" in page(found)
    assert told == (record.success and not record.success_8bit)
    assert len(Strict(page(found)).of("img")) == (1 if told else 3)


def test_a_standing_decision_is_no_promise(tiny: Clip) -> None:
    found = probed(tiny, radii=(0.001,))
    text = Strict(page(found)).text
    assert found.report.verdict.value == "not-broken-within-budget"
    assert "no promise" in text
    assert "The strongest attempt" in text
    assert "robust" not in text.replace("robustclip", "")


def test_a_report_without_pictures_and_curves_has_a_page(tiny: Clip) -> None:
    found = probed(tiny, include=())
    text = page(found)
    assert "The report holds no attacked picture." in text
    assert "How the attacks went" not in text


def test_pixels_of_another_picture_are_refused(broken: Probed) -> None:
    with pytest.raises(InvalidInput) as refusal:
        page(broken._replace(clean=torch.zeros_like(broken.clean)))
    assert refusal.value.field == "clean"


def test_the_command_and_the_seed_are_on_the_page(broken: Probed) -> None:
    text = Strict(page(broken, command="robustclip probe 'my photo.jpg' --labels 'a,b' --seed 0")).text
    assert "robustclip probe 'my photo.jpg' --labels 'a,b' --seed 0" in text
    assert "same seed (0)" in text
