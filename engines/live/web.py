"""A page for a vehicle without a screen: what the network sees now, and how it does."""

from __future__ import annotations

import base64
import binascii
import errno
import json
import logging
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from edgeuda.data.images import Image, encode_jpeg
from edgeuda.errors import ConfigError, DeviceError
from edgeuda.labels import LabelSpace
from engines.live.address import Address
from engines.live.capture import Capture
from engines.live.histogram import LatencyHistogram
from engines.live.sinks import Result, overlay

logger = logging.getLogger(__name__)

WIDTH = 960
"""Columns of the picture at most: frames of a large camera are made smaller before all else."""
PER_SECOND = 10
"""Pictures per second at most, so that watching takes little from the network."""
QUALITY = 80
"""Of the picture as JPEG."""
VIEWERS, CLIENTS = 4, 16
"""Streams, and connections of any kind, at a time."""
STANDING = 0.5
"""Seconds without a new picture after which the last one is sent again."""
PATIENCE = 10.0
"""Seconds for which a client may stand still."""
GUESS = 0.5
"""Seconds that a wrong token costs."""
RECENT = 30
"""Frames over which the frame rate is taken."""
BOUNDARY = "edgeuda"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'self'; "
        "script-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer."""
PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Files of the page, by path."""


class StatusPage:
    """Serves the newest overlay as a stream of JPEG, and counts and latencies as JSON.

    Pictures are made only while someone watches, in threads of the server, which miss what they
    are too slow for.

    Args:
        address: Where to listen; it does so from now on.
        space: Names and colours of the classes.
        capture: The source, whose counts are shown also while no frame comes.
        about: What else is shown: the model, the runtime, the precision.

    Raises:
        ConfigError: If another program listens there.
        DeviceError: If the machine has no such address.
    """

    name = "status page"

    def __init__(
        self, address: Address, space: LabelSpace, capture: Capture, about: Mapping[str, str]
    ) -> None:
        self._space, self._capture, self._about = space, capture, dict(about)
        self._colors = space.colors()
        self._changed = threading.Condition()
        self._newest: Result | None = None
        self._number = 0
        self._came: deque[float] = deque(maxlen=RECENT)
        self._latencies: dict[str, LatencyHistogram] = {}
        self._began = time.perf_counter()
        self._drawing = threading.Lock()
        self._drawn: tuple[int, bytes] = (0, b"")
        self.closed = threading.Event()
        self.viewers = threading.BoundedSemaphore(VIEWERS)
        self._server = _listen(self, address)
        self.address = replace(address, port=int(self._server.server_address[1]))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def write(self, result: Result) -> None:
        """See `Sink`."""
        with self._changed:
            self._newest = result
            self._number += 1
            self._came.append(time.perf_counter())
            for stage, milliseconds in result.stages.items():
                self._latencies.setdefault(stage, LatencyHistogram()).add(milliseconds)
            self._changed.notify_all()

    def close(self) -> None:
        """See `Sink`."""
        self.closed.set()
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def status(self) -> dict[str, Any]:
        """Return what the page shows beside the picture."""
        now = time.perf_counter()
        with self._changed:
            newest, came = self._newest, list(self._came)
            latencies = {
                stage: {"percentiles": one.percentiles(), "max": one.max}
                for stage, one in self._latencies.items()
            }
        span = came[-1] - came[0] if len(came) > 1 else 0.0
        counted = self._capture.tally(0 if newest is None else newest.tally.segmented)
        return {
            "about": self._about,
            "seconds": round(now - self._began, 1),
            "frames": asdict(counted),
            "per_second": round((len(came) - 1) / span, 2) if span > 0 else None,
            "since_last": round(now - came[-1], 2) if came else None,
            "failures": [] if newest is None else list(newest.failures),
            "watch": _watched(newest),
            "latency_ms": latencies,
            "classes": [
                {"name": name, "color": list(color)}
                for name, color in zip(self._space.classes, self._space.palette, strict=True)
            ],
        }

    def picture(self, after: int, timeout: float) -> tuple[int, bytes] | None:
        """Return the newest overlay as JPEG and its number.

        Args:
            after: Number of the last one; waits for another.
            timeout: Seconds to wait at most; None is returned then, and at the end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._number > after or self.closed.is_set(), timeout)
            number, newest = self._number, self._newest
            if newest is None or number <= after or self.closed.is_set():
                return None
        with self._drawing:  # once for all who watch
            if self._drawn[0] < number:
                self._drawn = number, self._draw(newest)
            return self._drawn

    def _draw(self, result: Result) -> bytes:
        image: Image = result.frame.image
        height, width = image.shape[:2]
        if width > WIDTH:
            size = (WIDTH, max(1, round(height * WIDTH / width)))
            smaller = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            labels = cv2.resize(result.labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
            result = replace(
                result, frame=replace(result.frame, image=np.asarray(smaller, np.uint8)),
                labels=np.asarray(labels, np.uint8),
            )  # fmt: skip
        return encode_jpeg(overlay(result, self._colors), QUALITY)


class _Server(ThreadingHTTPServer):
    """Takes a bounded number of connections, each in a thread."""

    daemon_threads = True
    request_queue_size = CLIENTS

    def __init__(self, page: StatusPage, address: Address) -> None:
        self.page, self.address = page, address
        self._free = threading.BoundedSemaphore(CLIENTS)
        if ":" in address.host:
            self.address_family = socket.AF_INET6
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)  # without the look-up of a name, which may take long
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.address.host), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or stood still is no error."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.warning("The served page: a request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "edgeuda", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        if not self._is_for_us():
            self._answer(421, "This page has another address\n")
        elif not self._may_see():
            time.sleep(GUESS)
            asks = {"WWW-Authenticate": 'Basic realm="edgeuda: any name, the token as password"'}
            self._answer(401, "The token is needed, as password\n", more=asks)
        elif self.path in PAGE:
            name, kind = PAGE[self.path]
            content = (files("engines.live") / "page" / name).read_bytes()
            self._answer(200, content, kind)
        elif self.path == "/status.json":
            self._answer(200, json.dumps(self.server.page.status()), "application/json")
        elif self.path.split("?")[0] == "/stream":
            self._stream()
        else:
            self._answer(404, "No such page\n")

    def _is_for_us(self) -> bool:
        """Whether it was asked by an address of this machine: others' names may lead here, too."""
        if self.server.address.token is not None:
            return True
        try:
            host = urlsplit(f"//{self.headers.get('Host') or ''}").hostname
        except ValueError:
            return False
        return host in ("localhost", "127.0.0.1", "::1", self.server.address.host)

    def _may_see(self) -> bool:
        form, _, said = (self.headers.get("Authorization") or "").partition(" ")
        if form.lower() == "basic":
            try:
                said = base64.b64decode(said, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                said = ""
        elif form.lower() != "bearer":
            said = ""
        return self.server.address.knows(said)

    def _stream(self) -> None:
        page = self.server.page
        if not page.viewers.acquire(blocking=False):
            self._answer(503, f"{VIEWERS} are watching already\n")
            return
        try:
            self._begin(200, f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.wfile.write(f"--{BOUNDARY}\r\n".encode())
            number, jpeg = 0, b""
            while not page.closed.is_set():
                found = page.picture(number, STANDING)
                if found is None and not number:
                    continue
                number, jpeg = found or (number, jpeg)
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                # Chromium shows a picture when the next one begins: a last one is sent again.
                self.wfile.write(head.encode() + jpeg + f"\r\n--{BOUNDARY}\r\n".encode())
                page.closed.wait(1 / PER_SECOND)
        finally:
            page.viewers.release()

    def _answer(
        self, code: int, content: str | bytes, kind: str = "text/plain; charset=utf-8",
        more: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        body = content.encode() if isinstance(content, str) else content
        self._begin(code, kind, {"Content-Length": str(len(body)), **(more or {})})
        self.wfile.write(body)

    def _begin(self, code: int, kind: str, more: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, **HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the run's own words are on the terminal."""


def _watched(newest: Result | None) -> dict[str, Any] | None:
    """Return what the page shows of a watch; None if nothing was tested."""
    if newest is None or newest.watch is None:
        return None
    state = newest.watch
    return {
        "ratio": round(state.ratio, 3),
        "column": state.column,
        "alarm": None if state.alarm is None else str(state.alarm),
    }


def _listen(page: StatusPage, address: Address) -> _Server:
    try:
        return _Server(page, address)
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            msg = f"`serve`: another program listens at port {address.port}. Choose another port"
            raise ConfigError(msg) from err
        if err.errno == errno.EACCES:
            msg = f"`serve`: port {address.port} is the system's. Choose one from 1024 on"
            raise ConfigError(msg) from err
        msg = f"`serve`: cannot listen at {address.host}: {err.strerror}"
        raise DeviceError(msg) from err
