"""The report in headless Chromium: it renders, its slider works, and it asks for nothing."""

import json
import shutil

import numpy as np
import pytest
from test_report import everything, sweep, write_json

from engines.report import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: apt install chromium"
)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    everything(folder / "in")
    write_json(folder / "in" / "tradeoff.json", sweep())
    page, *_ = build_report([folder / "in"], folder / "report.html")
    return page


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(request, browser, page_file):
    width, height = request.param
    opened = browser.new_page(viewport={"width": width, "height": height})
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


def test_the_verdict_and_the_trade_off_are_on_the_first_screen(page):
    height = page.viewport_size["height"]
    verdict = page.locator(".verdict li").first
    assert "Take fast." in verdict.inner_text()
    assert verdict.bounding_box()["y"] < height / 2
    assert page.locator(".hero svg").bounding_box()["y"] < height


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
    np.testing.assert_allclose(seen["50"][:, : half - gap], seen["100"][:, : half - gap], atol=3)
    np.testing.assert_allclose(seen["50"][:, half + gap :], seen["0"][:, half + gap :], atol=3)


def test_the_slider_obeys_the_keyboard_and_the_menus(page):
    slider = page.locator(".slider").first
    handle = slider.locator("input[type=range]")
    handle.focus()
    page.keyboard.press("ArrowLeft")
    assert handle.input_value() == "49"
    assert slider.evaluate("node => node.style.getPropertyValue('--cut')") == "49%"
    before, after = slider.locator("select").all()
    names = before.locator("option").all_inner_texts()
    assert names == ["camera", "ground truth", "stage 2"]
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
    assert page.locator(".strip img").count() == 18
    assert len(page.pdf()) > 50_000
