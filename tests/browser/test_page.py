"""The committed pages in a real browser, offline. Its own nox session installs what it needs."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="run by `nox -s browser`")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update"),
)
"""A browser that is root's, and asks nothing of any host by itself."""
STUDIES = sorted(p.parent.name for p in (ROOT / "paper").glob("*/post.html"))
WIDTHS = (390, 1440)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, f"needs one of {BROWSERS}: apt-get install chromium"
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=list(QUIET))
        yield launched
        launched.close()


class Opened:
    """A page with what it logged and asked for."""

    def __init__(self, browser: Any, study: str, width: int, **options: Any) -> None:
        size = {"width": width, "height": 900}
        self.context = browser.new_context(
            viewport=size, offline=True, reduced_motion="reduce", **options
        )
        self.page = self.context.new_page()
        self.logged: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.logged.append(message.text))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto((ROOT / "paper" / study / "post.html").as_uri())

    def close(self) -> None:
        self.context.close()


@pytest.fixture(params=[(s, w) for s in STUDIES for w in WIDTHS], ids=lambda p: f"{p[0]} {p[1]} px")
def opened(browser: Any, request: pytest.FixtureRequest) -> Iterator[Opened]:
    found = Opened(browser, *request.param)
    yield found
    found.close()


@pytest.fixture
def study(browser: Any) -> Iterator[Opened]:
    found = Opened(browser, "qwen3", 1440)
    yield found
    found.close()


def test_it_loads_alone_and_without_a_complaint(opened: Opened) -> None:
    assert opened.logged == []
    assert [u for u in opened.asked if not u.startswith(("file:", "data:"))] == []
    assert opened.page.title()


def test_a_complaint_and_a_request_would_be_seen(study: Opened) -> None:
    study.page.evaluate("console.error('a complaint')")
    study.page.evaluate("new Image().src = 'https://example.org/a.png'")
    study.page.wait_for_timeout(100)
    assert "a complaint" in study.logged
    assert any("Content Security Policy" in line for line in study.logged)


def test_the_page_does_not_scroll_sideways(opened: Opened, tmp_path: Path) -> None:
    page = opened.page
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    for name in ("effect_size_heatmap", "layer_curves"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_every_text_is_seen_whole_in_both_colour_schemes(browser: Any) -> None:
    for scheme in ("light", "dark"):
        found = Opened(browser, "qwen3", 390, color_scheme=scheme)
        ink, paper = (
            found.page.evaluate(f"getComputedStyle(document.body).{name}")
            for name in ("color", "backgroundColor")
        )
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (ink, paper)]
        assert abs(light[0] - light[1]) > 0.7
        assert (light[1] < 0.5) == (scheme == "dark")
        found.close()


def test_a_cell_of_the_heat_map_shows_its_interval_items_layer_and_curve(study: Opened) -> None:
    page = study.page
    detail = page.locator(".cell-detail")
    assert detail.inner_text() == ""
    button = page.get_by_role("button", name=re.compile("^32B on self awareness"))
    button.hover()
    text = detail.inner_text()
    assert re.search(r"32B on self awareness: d = [−\d.]+ \[[−\d.]+, [−\d.]+\]", text)
    assert re.search(r"n = 100 items, best layer \d+ \(\d+% of the depth\)", text)
    assert detail.locator("svg polyline.line").count() == 1
    other = page.get_by_role("button", name=re.compile("^4B on corrigible"))
    other.focus()
    assert "4B on corrigible" in detail.inner_text()
    assert other.get_attribute("aria-pressed") == "true"
    assert button.get_attribute("aria-pressed") == "false"


def test_a_tap_shows_it_too(browser: Any) -> None:
    found = Opened(browser, "qwen3", 390, has_touch=True, is_mobile=True)
    found.page.get_by_role("button", name=re.compile("^8B on sycophancy")).tap()
    assert "8B on sycophancy" in found.page.locator(".cell-detail").inner_text()
    number = found.page.locator("data.cited").first
    number.tap()
    assert "tables/" in found.page.locator("#source").inner_text()
    found.close()


def column(page: Any, name: str) -> list[str]:
    table = page.locator("table.sortable", has=page.get_by_role("button", name="Cohen's d")).first
    heads = [head.inner_text().split(" ↕")[0].strip(" ↑↓") for head in table.locator("th").all()]
    at = heads.index(name) + 1
    return [c.inner_text() for c in table.locator(f"tbody tr td:nth-child({at})").all()]


def test_a_table_sorts_by_number_both_ways(study: Opened) -> None:
    page = study.page
    unsorted = column(page, "Cohen's d")
    button = page.get_by_role("button", name="Cohen's d", exact=True).first
    button.click()
    rising = column(page, "Cohen's d")
    values = [float(text.split(" ")[0].replace("−", "-")) for text in rising]
    assert values == sorted(values)
    assert rising != unsorted
    button.press("Enter")
    assert column(page, "Cohen's d") == rising[::-1]
    head = page.locator("th[aria-sort]").first
    assert head.get_attribute("aria-sort") == "descending"


def test_models_can_be_switched_off_in_the_layer_curves(study: Opened) -> None:
    page = study.page
    boxes = page.locator(".toggles input")
    assert boxes.count() == 6
    curves = page.locator('#layer_curves svg [id^="curve-0-"]')
    assert curves.count() == 12
    boxes.first.uncheck()
    assert [c.is_visible() for c in curves.all()] == [False] * 12
    others = page.locator('#layer_curves svg [id^="curve-1-"]')
    assert all(c.is_visible() for c in others.all())
    boxes.first.check()
    assert all(c.is_visible() for c in curves.all())


def test_it_reads_without_javascript(browser: Any) -> None:
    found = Opened(browser, "qwen3", 1440, java_script_enabled=False)
    text = found.page.inner_text("main")
    assert "10. Conclusion" in text
    assert re.search(r"corrigible\s+1\.48", text)
    assert found.page.locator("#layer_curves svg").is_visible()
    assert found.page.locator(".toggles").count() == 0
    found.close()


def test_the_first_key_leads_past_the_contents(study: Opened) -> None:
    study.page.keyboard.press("Tab")
    assert study.page.evaluate("document.activeElement.className") == "skip"
    assert study.page.locator(".skip").is_visible()


def test_it_prints(study: Opened, tmp_path: Path) -> None:
    study.page.pdf(path=tmp_path / "post.pdf", format="A4")
    assert (tmp_path / "post.pdf").read_bytes()[:4] == b"%PDF"
    study.page.emulate_media(media="print")
    assert not study.page.locator("nav").is_visible()
    assert study.page.locator("#effect_size_heatmap").is_visible()
