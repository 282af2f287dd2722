"""A probe's page in a real browser: nothing leaves it, nothing runs in it, everything fits a phone and can be
read in light and dark.
"""

from collections.abc import Generator
from pathlib import Path

import pytest
from chromium import Tab, browsing
from probed import probed

from robustclip.models.clip import Clip
from robustclip.reports.pages import probe_page

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "x" * 150,
    "cat",
)
CONTRAST = """
(() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = text => channels(text).slice(0, 3)
    .map(value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = element => {
    for (let node = element; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const worst = [...document.body.querySelectorAll("*")]
    .filter(element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && \
element.checkVisibility())
    .map(element => {
      const inSvg = element instanceof SVGElement;
      const [low, high] = [luminance(getComputedStyle(element)[inSvg ? "fill" : "color"]), \
luminance(behind(element))].sort((a, b) => a - b);
      return [(high + 0.05) / (low + 0.05), element.tagName + ": " + element.textContent.trim().slice(0, 40)];
    })
    .sort((a, b) => a[0] - b[0])[0];
  return worst;
})()
"""


@pytest.fixture(scope="module")
def page(tiny: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = probed(
        tiny, labels=HOSTILE, radii=(1, 8), defense="bit_depth:4,resize_pad", score="cross_entropy"
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(
        probe_page(
            found.report,
            clean=found.clean,
            picture="photo.jpg",
            command=f"robustclip probe photo.jpg --labels {HOSTILE[1]!r}",
        )
    )
    return path


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Generator[Tab]:
    with browsing(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def test_nothing_runs_and_nothing_is_fetched(tab: Tab, page: Path) -> None:
    tab.open(page)
    assert tab.evaluate("document.title").endswith("photo.jpg · robustclip probe")
    assert (
        tab.evaluate("document.images.length")
        == tab.evaluate("[...document.images].filter(image => image.naturalWidth > 0).length")
        == 3
    )
    assert tab.evaluate("document.scripts.length") == 0
    assert tab.evaluate("document.querySelector('ul.labels').innerText").split("\n") == list(HOSTILE)
    assert tab.faults == []


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_the_page_fits_every_width(tab: Tab, page: Path, width: int) -> None:
    tab.open(page, width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    shown = tab.evaluate(
        "[...document.querySelectorAll('.pictures img, .pictures svg')].map(each => [each.clientWidth, "
        "each.clientHeight])"
    )
    assert len(shown) == 4
    assert all(wide == high >= 130 for wide, high in shown), "square as the pictures are"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_its_background(tab: Tab, page: Path, dark: bool) -> None:
    tab.open(page, dark=dark)
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    contrast, where = tab.evaluate(CONTRAST)
    assert contrast >= 4.5, where


def test_wide_tables_can_be_scrolled_by_keyboard(tab: Tab, page: Path) -> None:
    tab.open(page, width=360)
    scrolled = tab.evaluate(
        "[...document.querySelectorAll('.scroll')].map(each => [each.tabIndex, each.getAttribute('role')])"
    )
    assert scrolled == [[0, "region"]] * 2
