"""The report as a browser shows it, from disk and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.report import write_report
from tests.harness.report_fixture import LENGTHS, made_facts, made_rows, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = made_rows() + made_rows(lengths=LENGTHS[3::4], inputs="planted")
    return write_report(write_run(tmp_path_factory.mktemp("page"), rows, made_facts()))[0].as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(browser: Browser, address: str, complaints: list[str]) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url != address else None)
    page.goto(address)
    yield page
    page.close()


def test_the_page_has_no_console_message_and_asks_for_nothing(page: Page, complaints: list[str]) -> None:
    page.locator("summary").first.click()
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(page: Page, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_wide_table_scrolls_in_its_own_box_with_its_first_column_in_sight(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    box = page.locator("#cost .scroll").first
    box.evaluate("(each) => { each.scrollLeft = 10000; }")
    assert box.evaluate("(each) => each.scrollLeft") > 0
    first = box.locator("tbody th").first.bounding_box()
    assert first is not None
    assert first["x"] >= 0


@pytest.mark.parametrize("width", WIDTHS)
def test_one_drawing_of_each_figure_is_shown(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    shown = page.locator("#growth figure").first.locator(".drawing").filter(visible=True)
    assert shown.count() == 1
    size = shown.locator("svg").bounding_box()
    assert size is not None
    assert 300 < size["width"] <= width


def test_a_dark_page_draws_light_text(page: Page) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        text = page.locator("#growth .drawing.wide text").first
        colour = text.evaluate("(each) => getComputedStyle(each).fill.match(/\\d+/g).map(Number)")
        brightness[scheme] = sum(colour)
    assert brightness["light"] < 3 * 128 < brightness["dark"]


def test_a_click_sorts_by_value_and_a_second_one_turns_it_round(page: Page) -> None:
    table = page.locator("#cost table").first
    names = table.locator("tbody th")
    heading = table.locator("thead th", has_text="16K")
    before = names.all_inner_texts()
    heading.get_by_role("button").click()
    rising = [text.split("\n")[0] for text in names.all_inner_texts()]
    assert rising == ["window", "random", "bit_sampling", "flash", "vanilla"]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").click()
    assert [text.split("\n")[0] for text in names.all_inner_texts()] == rising[::-1]
    assert heading.get_attribute("aria-sort") == "descending"
    assert sorted(names.all_inner_texts()) == sorted(before)


def test_cells_without_a_value_stay_last_in_both_directions(page: Page) -> None:
    table = page.locator("#cost table").first
    heading = table.locator("thead th", has_text="256K").get_by_role("button")
    for _ in range(2):
        heading.click()
        last = [text.split("\n")[0] for text in table.locator("tbody th").all_inner_texts()[-2:]]
        assert sorted(last) == ["flash", "vanilla"]


def test_names_sort_as_words_and_by_keyboard(page: Page) -> None:
    table = page.locator("#cost table").first
    table.get_by_role("button", name="method").press("Enter")
    names = [text.split("\n")[0] for text in table.locator("tbody th").all_inner_texts()]
    assert names == sorted(names)
