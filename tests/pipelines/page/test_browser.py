"""A real Chromium opens the page: no complaint, nothing asked of anyone, nothing off the screen."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from pipelines.settings import Settings
from tests.pipelines.page.judged_run import answer_otherwise, judged

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = (360, 700, 830, 1280)
HOSTILE = {
    "shapes-1": "</span><script>document.title = 'taken'</script>",
    "shapes-2": '<img src="http://127.0.0.1:9/seen.png" onerror="document.title = 1">',
    "shapes-3": "x" * 9_000,
    "shapes-4": "\u0627\u0644\u062c\u0648\u0627\u0628 " * 40,
    "shapes-5": "<style>* { display: none }</style>",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a refused candidate whose answers try everything."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMOPS_HOME", str(home))
        judged(Settings(), "champion", wrong=10)
        answer_otherwise(judged(Settings(), wrong=200).run, "candidate", HOSTILE)
        return judged_again(Settings())


def judged_again(settings: Settings) -> Path:
    """Judge the answers as they are on disk."""
    from pipelines.judgement.side import read_side
    from pipelines.run import Run
    from pipelines.steps import EVALUATE
    from tests.pipelines.page.judged_run import Judged, decision

    run = Run(settings.runs / "judged")
    report = run.read(EVALUATE)
    champion = read_side(Run(settings.runs / "champion").read(EVALUATE), "candidate", "champion v1")
    return Judged(run, report, champion, decision(run, report, champion)).page()


def opened(
    browser: Browser, path: Path, width: int, scheme: Literal["light", "dark"] = "light"
) -> tuple[Page, list[str], list[str]]:
    """The page in a window so wide, with what the browser complained about and what it asked for."""
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    return page, complaints, requests


@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_without_a_complaint_and_asks_nobody(browser: Browser, written: Path, width: int) -> None:
    page, complaints, requests = opened(browser, written, width)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [written.as_uri()]
    assert page.title() == "Fail: judged"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(browser: Browser, written: Path, width: int) -> None:
    page, _, _ = opened(browser, written, width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(each => each.getClientRects().length &&"
        " !each.closest('thead') && each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML)"
    )
    assert beyond == []


def test_headings_go_down_one_by_one_and_pictures_say_what_they_show(browser: Browser, written: Path) -> None:
    page, _, _ = opened(browser, written, 1280)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(each => Number(each.tagName[1]))")
    assert levels[:2] == [1, 2]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.evaluate("[...document.images].every(each => each.alt && each.naturalWidth > 0)")
    assert page.evaluate(
        "[...document.querySelectorAll('svg')].map(each => each.getAttribute('aria-label')).every(Boolean)"
    )
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(each => each.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )


@pytest.mark.parametrize(("width", "shown"), [(360, "narrow"), (1280, "wide")])
def test_each_chart_is_drawn_for_the_width(browser: Browser, written: Path, width: int, shown: str) -> None:
    page, _, _ = opened(browser, written, width)
    visible = page.evaluate(
        "[...document.querySelectorAll('figure > div')].filter(each => each.offsetHeight).map(each => each.className)"
    )
    assert visible == [shown] * 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(browser: Browser, written: Path, scheme: Literal["light", "dark"]) -> None:
    page, _, _ = opened(browser, written, 1280, scheme)
    assert page.evaluate(LOW_CONTRAST) == []


LOW_CONTRAST = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(c => linear(c / 255))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = channels(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const node of document.querySelectorAll('main *:not(svg):not(svg *)')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.getClientRects().length) continue;
    const [a, b] = [light(channels(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(node.outerHTML.slice(0, 200));
  }
  return low;
}"""
"""Text that stands out less than WCAG 2.2 asks at level AA: a ratio of 4.5."""
