"""The served page: who may see it, what it says, and that no client holds up the network."""

import base64
import json
import logging
import shutil
import socket
import sys
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cli import crash
from cli.app import app
from edgeuda.data.images import paint
from edgeuda.errors import ConfigError, DeviceError
from engines.live import web
from engines.live.address import Address, address_of
from engines.live.capture import Capture
from engines.live.loop import StopAt, run
from engines.live.sinks import SinkThread
from engines.live.web import StatusPage
from live_results import WATCHED, FakeRunner, noisy, result, smooth
from tiny_models import SPEC, exported, random_frames, write_frames

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 300_000
"""Milliseconds: a busy machine is no fault of the page."""
TOKEN = "correct-horse-battery"
ABOUT = {"model": "vehicle.edgeuda", "backend": "imaginary 1.0", "precision": "int8"}
COLORS = SPEC.label_space.colors()


@pytest.fixture
def serve():
    with ExitStack() as stack:

        def start(token=None, host="127.0.0.1", capture=None):
            source = capture or Capture(lambda: iter(()), live=True)
            page = StatusPage(Address(host, 0, token), SPEC.label_space, source, ABOUT)
            stack.callback(page.close)
            return page

        yield start


def get(page, path="", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return urlopen(Request(page.address.url + path, headers=named), timeout=60)


def code(page, path="", **headers):
    try:
        with get(page, path, **headers) as answer:
            return answer.status
    except HTTPError as err:
        with err:
            return err.code


def basic(token, name="anyone"):
    return "Basic " + base64.b64encode(f"{name}:{token}".encode()).decode()


def pictures(page, count, **headers):
    """The first pictures of the stream."""
    found = []
    with get(page, "stream", **headers) as answer:
        assert answer.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=edgeuda"
        while len(found) < count:
            line = answer.readline()
            assert line
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
                assert answer.readline() == b"\r\n"
                encoded = np.frombuffer(answer.read(length), np.uint8)
                found.append(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1])
    return found


# --- the address ---


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("8080", "127.0.0.1", 8080), ("localhost:80", "127.0.0.1", 80),
        ("127.0.0.1:65535", "127.0.0.1", 65535), ("[::1]:9000", "::1", 9000),
    ],
)  # fmt: skip
def test_a_port_alone_is_of_this_machine(text, host, port):
    address = address_of(text, None)
    assert (address.host, address.port, address.is_loopback) == (host, port, True)


@pytest.mark.parametrize(
    "text", ["", "x", "0", "65536", "99999", "-1", "80.5", "vehicle:80", "0.0.0.0:", ":", "::1:80"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="`serve`: expected a port from 1 to 65535"):
        address_of(text, TOKEN)


@pytest.mark.parametrize("text", ["0.0.0.0:8080", "192.168.0.2:80", "[::]:8080"])
def test_others_need_a_token(text):
    with pytest.raises(ConfigError, match="EDGEUDA_SERVE_TOKEN or `serve_token`"):
        address_of(text, None)
    assert not address_of(text, TOKEN).is_loopback
    with pytest.raises(ConfigError, match="at least 12 ASCII characters") as refused:
        address_of(text, "hunter2")
    assert "hunter2" not in str(refused.value)


def test_a_token_is_in_no_text():
    address = address_of("0.0.0.0:8080", TOKEN)
    assert TOKEN not in f"{address!r} {address} {address.url}"
    assert address_of("[::1]:80", None).url == "http://[::1]:80/"


def test_a_port_that_is_taken_and_an_address_of_others_are_said(serve):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = Address("127.0.0.1", other.getsockname()[1])
        source = Capture(lambda: iter(()), live=True)
        with pytest.raises(ConfigError, match=f"listens at port {taken.port}. Choose another"):
            StatusPage(taken, SPEC.label_space, source, {})
    with pytest.raises(DeviceError, match=r"cannot listen at 192\.0\.2\.1"):
        serve(host="192.0.2.1", token=TOKEN)


# --- who may see it ---


def test_only_this_machine_reaches_a_page_without_a_token(serve):
    page = serve()
    assert page._server.socket.getsockname()[0] == "127.0.0.1"
    assert code(page) == 200
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert code(page, Host=host) == 200
    for host in ("attacker.example", "attacker.example:80", "127.0.0.1.attacker.example", "[", ""):
        assert code(page, "status.json", Host=host) == 421  # a name of theirs that leads here


@pytest.mark.parametrize("path", ["", "status.json", "stream", "page.js", "nothing"])
def test_nothing_is_seen_without_the_token(serve, monkeypatch, path):
    monkeypatch.setattr(web, "GUESS", 0.0)
    page = serve(TOKEN)
    page.write(result())
    wrong = [basic("wrong"), basic(TOKEN[:-1]), basic(TOKEN + "x"), basic(""), "Basic %%", "Basic"]
    wrong += [f"Bearer {TOKEN[1:]}", "Bearer", TOKEN, f"Digest {TOKEN}", basic("ö")]
    assert code(page, path) == 401
    assert [code(page, path, Authorization=one) for one in wrong] == [401] * len(wrong)
    if path != "stream":
        expected = 404 if path == "nothing" else 200
        for right in (basic(TOKEN), basic(TOKEN, ""), f"Bearer {TOKEN}"):
            assert code(page, path, Authorization=right) == expected
    assert code(page, f"?token={TOKEN}") == 401


def test_a_wrong_token_takes_time_and_is_told_how(serve):
    page = serve(TOKEN)
    begin = time.perf_counter()
    with pytest.raises(HTTPError) as refused:
        get(page, Authorization=basic("wrong"))
    assert time.perf_counter() - begin >= web.GUESS
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic realm=")
    refused.value.close()


def test_the_token_is_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: bool(compared.append((a, b))))
    assert not Address(token=TOKEN).knows("x")
    assert compared == [(b"x", TOKEN.encode())]
    assert Address().knows("x")


@pytest.mark.parametrize("path", ["", "status.json", "page.css", "page.js", "icon.svg", "nothing"])
def test_answers_allow_nothing_from_elsewhere(serve, path):
    page = serve()
    try:
        answer = get(page, path)
    except HTTPError as err:
        answer = err
    with answer:
        policy = dict(one.split(" ", 1) for one in answer.headers[
            "Content-Security-Policy"].split("; "))  # fmt: skip
        assert policy["default-src"] == "'none'"
        assert set(policy.values()) == {"'none'", "'self'"}
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert b"http" not in answer.read().replace(b"http://www.w3.org/2000/svg", b"")


@pytest.mark.parametrize("path", ["../web.py", "%2e%2e/web.py", "page/page.html", "/etc/passwd"])
def test_no_other_file_is_served(serve, path):
    assert code(serve(), path) == 404


def test_nothing_can_be_sent(serve):
    page = serve()
    connection = HTTPConnection("127.0.0.1", page.address.port, timeout=60)
    connection.request("POST", "/status.json", b"{}")
    assert connection.getresponse().status == 501
    connection.close()


# --- what it says ---


def test_counts_and_latencies(serve):
    source = Capture(lambda: iter(()), live=True)
    page = serve(capture=source)
    with get(page, "status.json") as answer:
        empty = json.load(answer)
    assert (empty["per_second"], empty["since_last"], empty["latency_ms"]) == (None, None, {})
    for number in range(70):
        page.write(result(number))
    source.received, source.reconnects = 90, 3  # while no frame comes
    source.queue.dropped = 20
    with get(page, "status.json") as answer:
        said = json.load(answer)
    assert said["frames"] == {
        "received": 90, "segmented": 70, "dropped": 20, "missed": 0, "reconnects": 3,
    }  # fmt: skip
    total = said["latency_ms"]["total"]
    assert set(total["percentiles"]) == {"50", "90"}  # what 70 frames support
    assert total["percentiles"]["50"] == pytest.approx(11.8 + 34, rel=0.011)
    assert total["max"] == pytest.approx(11.8 + 69)
    assert list(said["latency_ms"]) == ["waiting", "resize", "inference", "upsample", "total"]
    assert said["about"] == ABOUT
    assert [one["name"] for one in said["classes"]] == list(SPEC.label_space.classes)


def test_the_stream_is_of_overlays(serve):
    page = serve()
    page.write(result(2, height=240, width=320))
    (picture,) = pictures(page, 1)
    labels = result(2, height=240, width=320).labels
    expected = paint(smooth(2, 240, 320), labels, COLORS).astype(int)
    lower = slice(60, None)  # the status is above
    assert np.abs(picture[lower] - expected[lower]).mean() < 12


def test_pictures_of_a_large_camera_are_made_smaller(serve):
    page = serve()
    page.write(result(0, height=1080, width=1920))
    (picture,) = pictures(page, 1)
    assert picture.shape == (540, 960, 3)


def test_a_picture_is_drawn_once_and_only_for_those_who_watch(serve, monkeypatch):
    page, drawn = serve(), []
    draw = page._draw
    monkeypatch.setattr(page, "_draw", lambda one: drawn.append(one) or draw(one))
    for number in range(50):
        page.write(result(number))
    assert drawn == []
    for _ in range(3):
        pictures(page, 1)
    assert [one.frame.index for one in drawn] == [49]


# --- clients that take their time ---


def test_slow_clients_hold_nothing_up(serve):
    """Clients that ask for the stream and never read it, while large pictures come."""
    page = serve()
    thread = SinkThread(page, lossless=True)  # would wait for a slow sink
    silent = [socket.create_connection(("127.0.0.1", page.address.port)) for _ in range(6)]
    for one in silent[:4]:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        one.sendall(b"GET /stream HTTP/1.0\r\nHost: localhost\r\n\r\n")
    image = noisy(0, 480, 640)
    slowest = 0.0
    for number in range(300):
        begin = time.perf_counter()
        thread.offer(result(number, image=image))
        slowest = max(slowest, time.perf_counter() - begin)
        time.sleep(0.005)
    while thread.written < 300:
        time.sleep(0.01)
    assert thread.queue.dropped == 0
    assert slowest < 2  # on a busy machine; it would be ten seconds
    assert code(page, "status.json") == 200
    assert code(page, "stream") == 503  # four watch
    for one in silent:
        one.close()
    thread.close()


def test_connections_are_bounded(serve, monkeypatch):
    page = serve()
    place = ("127.0.0.1", page.address.port)
    many = [socket.create_connection(place) for _ in range(web.CLIENTS)]
    time.sleep(0.5)
    with pytest.raises(OSError):  # noqa: PT011 - closed at once, however the system says so
        get(page)
    for one in many:
        one.close()

    def is_free():
        try:
            return code(page) == 200
        except OSError:
            return False

    deadline = time.perf_counter() + 60
    while not is_free():  # there is room again
        assert time.perf_counter() < deadline
        time.sleep(0.1)


def test_the_stream_ends_with_the_run(serve):
    page = StatusPage(
        Address(port=0), SPEC.label_space, Capture(lambda: iter(()), live=True), ABOUT
    )
    page.write(result())
    with get(page, "stream") as answer:
        page.close()
        assert answer.read().endswith(b"--edgeuda\r\n")
    with pytest.raises(OSError):  # noqa: PT011 - nobody listens
        get(page)


def test_a_run_has_the_page_as_a_sink():
    def frames():
        for number in range(41):
            time.sleep(0.01)
            yield result(number).frame

    source = Capture(frames, live=True)
    page = StatusPage(Address(port=0), SPEC.label_space, source, ABOUT)
    record = run(FakeRunner(), source, [page], lossless=False, limits=StopAt(frames=40))
    assert record.sinks["status page"].written + record.sinks["status page"].dropped == 40
    assert record.sinks["status page"].error is None


# --- the verb ---


def words(tmp_path, *more):
    if not (tmp_path / "m.onnx").exists():
        (tmp_path / "m.onnx").write_bytes(exported("labels"))
        write_frames(tmp_path / "frames", random_frames(3, 48, 96))
    given = ["run", "--model", tmp_path / "m.onnx", "--target", tmp_path / "frames"]
    return [str(word) for word in [*given, "--out", tmp_path / "out", "--threads", "1", *more]]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_verb_serves_and_neither_prints_nor_records_the_token(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("EDGEUDA_SERVE_TOKEN", TOKEN)
    port = free_port()
    done = CliRunner().invoke(app, words(tmp_path, "--serve", f"0.0.0.0:{port}"))
    assert done.exit_code == 0, done.output
    assert f"watch http://0.0.0.0:{port}/" in done.output
    text = (tmp_path / "out" / "run.json").read_text()
    assert json.loads(text)["sinks"]["status page"]["error"] is None
    assert TOKEN not in done.output + text + caplog.text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--serve", "0.0.0.0:8080"], "others reach this address"),
        (["--serve", "http"], "expected a port"),
        (["--serve-token", TOKEN], "--serve-token: expected --serve beside it"),
        (["--serve", "8080", "--serve-token", "short"], "at least 12"),
    ],
)
def test_the_verb_refuses_before_it_opens_the_model(tmp_path, monkeypatch, more, said):
    monkeypatch.delenv("EDGEUDA_SERVE_TOKEN", raising=False)
    given = ["run", "--model", "nothing.onnx", "--target", "0", "--out", str(tmp_path / "o"), *more]
    done = CliRunner().invoke(app, given)
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)
    assert TOKEN not in str(done.exception)


def test_the_verb_says_that_a_port_is_taken(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = CliRunner().invoke(app, words(tmp_path, "--serve", str(other.getsockname()[1])))
    assert isinstance(done.exception, ConfigError)
    assert "another program listens" in str(done.exception)


def test_the_log_of_a_fault_holds_no_token(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["edgeuda", "run", "--serve-token", TOKEN, "--serve", "80"])
    crash.describe(ValueError("x"))
    monkeypatch.setattr(sys, "argv", ["edgeuda", "run", f"--serve-token={TOKEN}", "--serve=80"])
    crash.describe(ValueError("x"))
    logs = [path.read_text() for path in tmp_path.glob("edgeuda-*.log")]
    assert len(logs) == 2
    assert TOKEN not in "".join(logs)
    assert sum("--serve-token" in text and "***" in text for text in logs) == 2


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE
        )
        yield started
        started.close()


def opened(browser, served, **how):
    page = browser.new_page(**how)
    page.set_default_timeout(PATIENCE)
    page.complaints, page.requests = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(served.address.url)
    return page


def pixel(page):
    """The middle of the stream's lower half, as the screen shows it."""
    shot = np.frombuffer(page.locator("#stream").screenshot(), np.uint8)
    image = cv2.imdecode(shot, cv2.IMREAD_COLOR)[:, :, ::-1].astype(int)
    height, width = image.shape[:2]
    return image[height * 3 // 4, width // 2]


def until(page, true, what):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if true():
            return
        page.wait_for_timeout(100)
    pytest.fail(what)


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desk", "phone"])
def test_the_page_shows_overlay_counts_and_percentiles(browser, serve, size):
    served = serve()
    served._capture.received, served._capture.queue.dropped = 73, 2
    for number in range(70):
        served.write(result(number, height=240, width=320))
    page = opened(browser, served, viewport={"width": size[0], "height": size[1]})
    until(page, lambda: page.locator("#latency tbody tr").count() == 5, "no table")
    assert page.locator("#latency thead").inner_text().split() == ["stage", "p50", "p90", "max"]
    total = page.locator("#latency tr.total").inner_text().split()
    assert total[0] == "total"
    assert float(total[1]) == pytest.approx(45.8, rel=0.02)
    assert "vehicle.edgeuda" in page.locator("#about").inner_text()
    boxes = page.locator("#frames div").all_inner_texts()
    assert "segmented\n70" in boxes
    assert page.locator("#classes li").count() == len(SPEC.label_space)
    colors = page.evaluate(
        "[...document.querySelectorAll('#classes li')]"
        ".map((li) => getComputedStyle(li, '::before').backgroundColor)"
    )
    assert colors[0] == f"rgb({', '.join(map(str, COLORS[0]))})"
    until(page, lambda: page.evaluate("document.getElementById('stream').naturalWidth") == 320, "")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dropped, failures = "dropped\n2 2.74 %", page.locator("#failures")
    assert dropped in [" ".join(box.split(" ")) for box in boxes]
    assert not failures.is_visible()
    assert not page.locator("#watch").is_visible()
    served.write(result(70, failures=("mcap file: <b>the disk is full</b>",)))
    failures.wait_for(state="visible")
    assert failures.locator("li").inner_text() == "mcap file: <b>the disk is full</b>"
    assert page.complaints == []
    assert all(url.startswith(served.address.url) for url in page.requests)
    page.close()


def test_the_page_says_what_a_watch_finds(browser, serve):
    served = serve()
    served.write(result(0, watch=WATCHED[1]))
    page = opened(browser, served)
    shown = page.locator("#watch")
    shown.wait_for(state="visible")
    assert shown.inner_text() == "Looks as it did: sharpness is at 40 % of its limit"
    served.write(result(1, watch=WATCHED[3]))
    until(page, lambda: "Alarm at 6 s, light" in shown.inner_text(), "no alarm")
    assert (shown.get_attribute("role"), shown.get_attribute("class")) == ("alert", "bad")
    served.write(result(2, watch=WATCHED[5]))
    until(page, lambda: "Looks as it did" in shown.inner_text(), "the alarm goes on")
    assert page.complaints == []
    page.close()


def test_the_picture_moves_and_the_end_is_said(browser, serve):
    served = serve()
    black, white = np.zeros((240, 320, 3), np.uint8), np.full((240, 320, 3), 255, np.uint8)
    served.write(result(0, image=black))
    page = opened(browser, served)
    until(page, lambda: page.locator("#state").inner_text() == "running", "not running")
    until(page, lambda: pixel(page).sum() < 450, "not dark")
    dark = pixel(page)
    served.write(result(2, image=white))
    until(page, lambda: pixel(page).sum() > dark.sum() + 100, "the picture stands")
    until(page, lambda: "no frame for" in page.locator("#state").inner_text(), "no frame: not said")
    served._server.shutdown()
    served._server.server_close()
    until(page, lambda: "no answer" in page.locator("#state").inner_text(), "the end: not said")
    page.close()


def test_a_browser_asks_for_the_token(browser, serve, monkeypatch):
    served = serve(TOKEN)
    served.write(result(0, height=240, width=320))
    page = opened(browser, served, http_credentials={"username": "me", "password": TOKEN})
    until(page, lambda: page.locator("#state").inner_text() == "running", "not running")
    until(page, lambda: page.evaluate("document.getElementById('stream').naturalWidth") == 320, "")
    page.close()
