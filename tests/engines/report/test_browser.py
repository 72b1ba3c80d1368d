"""The report in headless Chromium: it renders, its slider works, and it asks for nothing."""

import json
import shutil

import numpy as np
import pytest

from engines.report.page import build_report
from report_records import comparison, everything, predictions, rate, sweep, write_json

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on this machine: apt install chromium"
    ),
]
PATIENCE = 300_000
"""Milliseconds: a busy machine is no fault of the page."""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    everything(folder / "in")
    predictions(folder / "in" / "before", "source-only", [f"frame{i}.png" for i in range(9)], 1)
    write_json(folder / "in" / "tradeoff.json", sweep())
    write_json(folder / "in" / "rate.json", rate())
    write_json(folder / "in" / "comparison.json", comparison())
    page, *_ = build_report([folder / "in"], folder / "report.html")
    return page


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE
        )
        yield started
        started.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(request, browser, page_file):
    width, height = request.param
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.set_default_timeout(PATIENCE)
    opened.complaints, opened.requests = [], []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.goto(page_file.as_uri())
    yield opened
    opened.close()


def test_no_complaint_and_no_request_but_the_page_itself(page, page_file):
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [page_file.as_uri()]


def test_nothing_is_wider_than_the_screen(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def shown(page, selector):
    """Whether the first screen shows all of an element."""
    box = page.locator(selector).first.bounding_box()
    return box["height"] > 0 and box["y"] + box["height"] <= page.viewport_size["height"]


def test_the_first_screen_holds_frame_choice_cost_faults_and_doubts(page):
    assert "Take fast." in page.locator(".verdict li").first.inner_text()
    for selector in (".pair img", ".pair figure:last-child img", ".verdict li"):
        assert shown(page, selector), selector
    assert page.locator(".pair figcaption").all_inner_texts() == [
        "before: source-only", "after: stage 2",
    ]  # fmt: skip
    if page.viewport_size["width"] > 600:
        for selector in ("#costs ul", "#wrong ul", "#uncertain h2"):
            assert shown(page, selector), selector
        assert "misses 100.0 % of the deadlines" in page.locator("#wrong").inner_text()
        assert not page.locator(".jump").is_visible()
    else:  # a phone shows how many there are, and leads there
        assert shown(page, ".jump")
        jumps = page.locator(".jump a").all_inner_texts()
        assert [jump.split(":")[0] for jump in jumps] == ["Costs", "Went wrong", "Uncertain"]
        page.locator(".jump a").nth(1).click()
        page.wait_for_timeout(800)  # it scrolls smoothly
        assert page.evaluate("window.scrollY") > 0


def test_a_table_that_is_cut_says_so(page):
    """Wherever a table goes on beyond its frame, a line above it is to be seen."""
    silent = page.evaluate(
        """[...document.querySelectorAll(".scroll")].filter(
            (box) => box.scrollWidth > box.clientWidth + 1
              && !(box.previousElementSibling.classList.contains("hint")
                && box.previousElementSibling.getClientRects().length)
        ).map((box) => box.getAttribute("aria-label"))"""
    )
    assert silent == []


def test_nothing_is_cut_on_a_desk_and_no_half_of_it_is_empty(browser, page_file):
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    opened.set_default_timeout(PATIENCE)
    opened.goto(page_file.as_uri())
    cut = """[...document.querySelectorAll(".scroll")].filter(
        (box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.ariaLabel)"""
    assert opened.evaluate(cut) == []
    plot = opened.locator("#accuracy .plot").first.bounding_box()
    table = opened.locator("#accuracy table").first.bounding_box()
    assert table["x"] > plot["x"] + plot["width"]
    assert table["y"] < plot["y"] + plot["height"]
    chapters = opened.evaluate("[...document.querySelectorAll('section')].map((s) => s.id)")
    assert chapters[:3] == ["summary", "frames", "tradeoff"]
    opened.close()


def test_every_plot_is_drawn(page):
    for plot in page.locator("svg").all():
        box = plot.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 80
        assert plot.locator("path").count() > 5


def picture(page, slider):
    """The slider's pixels as an array."""
    import cv2

    encoded = np.frombuffer(slider.locator(".view").screenshot(), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR).astype(int)


def test_the_slider_draws_one_model_over_the_other(page):
    slider = page.locator(".slider").first
    handle = slider.locator("input[type=range]")
    seen = {}
    for value in ("0", "50", "100"):
        handle.fill(value)
        seen[value] = picture(page, slider)
    half = seen["0"].shape[1] // 2
    assert np.abs(seen["0"] - seen["100"]).mean() > 2
    gap = 6  # the edge between the two
    # On average: layers are scaled each by itself, which moves single pixels a little.
    assert np.abs(seen["50"][:, : half - gap] - seen["100"][:, : half - gap]).mean() < 0.2
    assert np.abs(seen["50"][:, half + gap :] - seen["0"][:, half + gap :]).mean() < 0.2


def test_the_slider_obeys_the_keyboard_and_the_menus(page):
    slider = page.locator(".slider").first
    handle = slider.locator("input[type=range]")
    handle.focus()
    page.keyboard.press("ArrowLeft")
    assert handle.input_value() == "49"
    assert slider.evaluate("node => node.style.getPropertyValue('--cut')") == "49%"
    before, after = slider.locator("select").all()
    names = before.locator("option").all_inner_texts()
    assert names == ["camera", "ground truth", "source-only", "stage 2"]
    first = slider.locator("img.before").get_attribute("src")
    before.select_option("ground truth")
    assert slider.locator("img.before").get_attribute("src") != first
    assert "ground truth" in slider.locator("img.before").get_attribute("alt")
    assert after.input_value() == "stage 2"


def test_the_keyboard_reaches_everything(page):
    seen = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.tagName"))
    assert {"A", "INPUT", "SELECT", "DIV"} <= seen


def test_the_embedded_data_are_the_file_beside_it(page, page_file):
    embedded = page.locator("#edgeuda-report").inner_text() or page.evaluate(
        "document.getElementById('edgeuda-report').textContent"
    )
    assert json.loads(embedded) == json.loads(page_file.with_suffix(".json").read_text())


def test_in_print_everything_is_there_but_the_controls(page):
    page.emulate_media(media="print")
    assert not page.locator(".slider").first.is_visible()
    assert not page.locator("nav").is_visible()
    assert page.locator(".strip img").count() == 24
    for selector in (".pair img", ".verdict li", "#costs", "#wrong", "#uncertain"):
        assert page.locator(selector).first.is_visible()
    assert not any(hint.is_visible() for hint in page.locator(".hint").all())
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 less its margins
    wide = (
        "[...document.querySelectorAll('table')].filter((t) => t.offsetWidth > innerWidth).length"
    )
    assert page.evaluate(wide) == 0
    assert len(page.pdf()) > 50_000
