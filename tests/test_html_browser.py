"""The page of a report in a real browser: it loads nothing, complains of nothing, and does what its controls say.

Skipped where no browser is installed; ``make browser`` installs one on Debian. ``FREPO_BENCH_CHROMIUM`` names another.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.datasets import Benchmark
from harness.reports.html import page as html_page
from tests.builders import cost, curve, made
from tests.test_html import HOSTILE, small, stored

__all__ = ["small"]  # a fixture
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
TABLE = "#t2"
"""The table of the native protocol."""
PHONE = {"width": 375, "height": 812}


def executable() -> str | None:
    found = (shutil.which(name, path=f"{os.environ['PATH']}:/usr/lib/chromium") for name in NAMES)
    return os.environ.get("FREPO_BENCH_CHROMIUM") or next(filter(None, found), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make browser")
    path = executable()
    if path is None:
        pytest.skip("needs Chromium: make browser, or name it in FREPO_BENCH_CHROMIUM")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, small: Benchmark) -> Path:
    """A page of everything that a page can have, with a hostile name in every place."""
    root = tmp_path_factory.mktemp("page")
    records = [
        *(made((0.90, 0.92), krr=(0.8, 0.7), seed=seed, ipc=10) for seed in (0, 1)),
        made((0.85, 0.83), method="mtt", network="convnet", ipc=10),
        made((0.5, 0.6), method="random_real", steps=None, ipc=10),
        made((0.7, 0.72), method="dm", dataset=HOSTILE, ipc=10, network=HOSTILE),
        made((), method="mtt", network="convnet", dataset=HOSTILE, status="oom", message=HOSTILE),
        curve("frepo", [(1.0, 0.5), (10.0, 0.9)], dataset=HOSTILE),
        curve("mtt", [(1.0, 0.4), (10.0, 0.8)], dataset=HOSTILE),
        *(cost(name, 0.1 * width / 8, width=width) for name in ("frepo", "mtt") for width in (8, 16, 32)),
    ]
    path = root / "report.html"
    path.write_text(html_page(stored(root / "records", small, *records), [HOSTILE]), encoding="utf-8")
    return path


class Opened:
    """The page in a tab, with everything that the browser said and asked for."""

    def __init__(self, browser: Any, report: Path, **settings: Any) -> None:
        self.context = browser.new_context(offline=True, **settings)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(report.as_uri())

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.page.locator(selector).all_inner_texts()]


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    tab = Opened(browser, report, viewport={"width": 1280, "height": 900})
    yield tab
    # Whatever a test did: no message, no request but for the page itself and its own pictures.
    assert tab.said == []
    assert [url for url in tab.asked if not url.startswith("data:")] == [report.as_uri()]
    tab.context.close()


def column(opened: Opened, table: str, title: str) -> list[str]:
    titles = [text.strip() for text in opened.page.locator(f"{table} thead th").all_text_contents()]
    rows = opened.page.locator(f"{table} tbody tr:not([hidden])")
    cells = rows.locator(f"td:nth-child({titles.index(title) + 1})").all_text_contents()
    return [" ".join(cell.split()) for cell in cells]


def test_a_click_sorts_up_down_and_back(opened: Opened) -> None:
    before = column(opened, TABLE, "accuracy (%)")
    head = opened.page.locator(f"{TABLE} th button", has_text="accuracy (%)").first
    numbers = []
    for direction in ("descending", "ascending"):
        head.click()
        assert head.locator("..").get_attribute("aria-sort") == direction
        shown = column(opened, TABLE, "accuracy (%)")
        assert sorted(shown) == sorted(before)
        numbers.append([float(text.split()[0]) for text in shown if text[0].isdigit()])
        assert not any(text[0].isdigit() for text in shown[len(numbers[-1]) :])  # what has no number is last
    assert numbers[0] == sorted(numbers[0], reverse=True) == numbers[1][::-1] and len(set(numbers[0])) > 2
    head.click()
    assert column(opened, TABLE, "accuracy (%)") == before
    assert head.locator("..").get_attribute("aria-sort") == "none"


def test_the_keyboard_sorts(opened: Opened) -> None:
    head = opened.page.locator(f"{TABLE} th button", has_text="method").first
    head.focus()
    assert head.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"  # focus can be seen
    opened.page.keyboard.press("Enter")
    methods = column(opened, TABLE, "method")
    assert methods == sorted(methods) and len(set(methods)) > 2
    opened.page.keyboard.press("Space")
    assert column(opened, TABLE, "method") == methods[::-1]


def test_the_filter_keeps_rows_with_all_words(opened: Opened) -> None:
    table = opened.page.locator(TABLE)
    there = len(column(opened, TABLE, "method"))
    table.locator("input[type=search]").fill("mtt mnist")
    assert column(opened, TABLE, "method") == ["mtt"]
    assert table.locator(".tools output").inner_text() == f"1 of {there} rows"
    table.locator("input[type=search]").fill("")
    assert len(column(opened, TABLE, "method")) == there


def test_columns_are_hidden_and_shown(opened: Opened) -> None:
    table = opened.page.locator(TABLE)
    head = table.locator("th", has_text="steps")
    assert head.is_visible()
    table.locator(".columns summary").click()
    box = table.locator("label", has_text="steps").locator("input").first
    box.uncheck()
    assert not head.is_visible()
    shown = table.locator("tbody tr").first.locator("td:visible").count()
    box.check()
    assert head.is_visible() and table.locator("tbody tr").first.locator("td:visible").count() == shown + 1


def test_a_method_is_switched_off_in_its_figure(opened: Opened) -> None:
    figure = opened.page.locator(".plot", has=opened.page.locator("button", has_text="mtt")).first
    button = figure.locator("button", has_text="mtt")
    lines = figure.locator(f"g[data-s='{button.get_attribute('data-s')}']")
    others = figure.locator(f"g:not([data-s='{button.get_attribute('data-s')}'])")
    assert lines.first.is_visible() and lines.count() >= 2  # a panel each
    button.focus()
    opened.page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert not lines.first.is_visible() and others.first.is_visible()
    button.click()
    assert button.get_attribute("aria-pressed") == "true" and lines.first.is_visible()


def test_labels_are_told_by_mouse_and_by_keys(opened: Opened) -> None:
    block = opened.page.locator(".block", has_text="mnist, 10 images")
    sheet = block.locator(".pixels").first
    sheet.hover(position={"x": 44 * 4 + 5, "y": 44 * 3 + 5})
    assert block.locator("output").inner_text() == "frepo: 3, image 5 of 10: label 3"
    opened.page.mouse.move(0, 0)
    assert "arrow keys" in block.locator("output").inner_text()
    sheet.focus()  # the keys go on where the mouse was
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "ArrowRight"):
        opened.page.keyboard.press(key)
    assert block.locator("output").inner_text() == "frepo: 4, image 6 of 10: label 4"


def test_a_link_opens_the_record_with_command_and_configuration(opened: Opened) -> None:
    opened.page.locator(f"{TABLE} tbody tr", has_text="frepo").locator("a").first.click()
    entry = opened.page.locator("details.entry[open]")
    assert entry.count() == 1 and entry.locator("pre").first.is_visible()
    for part in ("Command", "Configuration", "Record", "Evaluation: accuracy"):
        assert entry.locator("h4", has_text=part).first.is_visible()
    place = entry.get_attribute("id")
    assert opened.page.evaluate("document.activeElement.parentElement.id") == place
    entry.locator("summary").click()
    opened.page.locator(f"{TABLE} tbody a[href='#{place}']").first.click()  # once more, with the address as it is
    assert opened.page.locator(f"#{place}").get_attribute("open") is not None
    opened.page.locator("#find").fill("dm")
    assert 0 < opened.page.locator("details.entry:visible").count() < opened.page.locator("details.entry").count()


def test_a_hostile_name_is_shown_as_it_is(opened: Opened) -> None:
    assert HOSTILE in column(opened, TABLE, "data set")
    assert opened.page.locator("script").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colour_schemes(browser: Any, report: Path, scheme: str) -> None:
    tab = Opened(browser, report, color_scheme=scheme)
    script = """selectors => selectors.map(s => {
        const style = getComputedStyle(document.querySelector(s));
        return [style.fill !== "rgb(0, 0, 0)" && s.startsWith("svg") ? style.fill : style.color,
                getComputedStyle(document.body).backgroundColor];
    })"""
    selectors = ["body", ".caption", "a", ".spread", ".verdict", "dt", "svg text", ".status", ".same", "nav a"]
    for selector, pair in zip(selectors, tab.page.evaluate(script, selectors), strict=True):
        dark, light = sorted(_luminance(colour) for colour in pair)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, pair)
    paper = _luminance(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.8) == (scheme == "light")
    assert tab.said == []
    tab.context.close()


def _luminance(colour: str) -> float:
    """Relative luminance of ``rgb(…)``, as the Web Content Accessibility Guidelines define it."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_phone_needs_no_sideways_scrolling(browser: Any, report: Path) -> None:
    tab = Opened(browser, report, viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="dark")
    width = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    assert tab.page.evaluate(width) == PHONE["width"]
    box = tab.page.locator(f"{TABLE} .box")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")  # the table scrolls in its own box
    for summary in tab.page.locator("details:not(.entry) > summary").all():
        summary.click()
    tab.page.locator(f"{TABLE} tbody a").first.click()
    assert tab.page.evaluate(width) == PHONE["width"]
    block = tab.page.locator(".block", has_text="mnist, 10 images")
    block.locator(".pixels").first.tap(position={"x": 5, "y": 36 * 2 + 5})
    assert block.locator("output").inner_text() == "frepo: 2, image 1 of 10: label 2"
    assert tab.said == []
    tab.context.close()


def test_paper_has_the_numbers_and_no_controls(browser: Any, report: Path) -> None:
    tab = Opened(browser, report)
    tab.page.emulate_media(media="print")
    assert not tab.page.locator(".tools").first.is_visible() and not tab.page.locator("nav").is_visible()
    assert tab.page.locator(f"{TABLE} table").is_visible() and tab.page.locator(".panels svg").first.is_visible()
    tab.context.close()
