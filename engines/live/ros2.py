"""A ROS 2 node: camera images in, label images and diagnostics out.

Needs a ROS 2 installation, whose ``rclpy`` is not on PyPI.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np

from edgeuda.data.images import Image, LabelMap
from edgeuda.data.treatment import as_shown
from edgeuda.errors import DataError, DependencyError
from engines.live import diagnostic
from engines.live.watch import Watch
from engines.runner import FrameSignals, Runner, segment, signals_of
from engines.signals import statistics

_TO_RGB: dict[str, int | None] = {
    "rgb8": None,
    "bgr8": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
}
"""Conversion of each encoding that is read."""
DIAGNOSES = 10
"""Messages that are kept for a slow subscriber, as a diagnostic updater of ROS keeps them."""


def spin(
    runner: Runner,
    images: str,
    labels: str,
    *,
    node_name: str = "edgeuda",
    status: Callable[[str], None] = lambda _: None,
    watch: Watch | None = None,
) -> int:
    """Publish a label image for each camera image, until ROS shuts down.

    The subscription keeps the newest image only, best effort, as cameras publish: a slow network
    drops images and never delays them. Labels are ``mono8``, of the image's size and header; if the
    model's spec has a geometry, images are undistorted and cropped, and labels are of that part.

    With a watch, what it finds is published on ``/diagnostics`` once a second, and when an alarm
    begins, while images come.

    Args:
        runner: The model.
        images: Topic of ``sensor_msgs/msg/Image``.
        labels: Topic to publish on.
        node_name: Name of the node.
        status: Told the latency of every hundredth image, and of alarms.
        watch: Holds the images against what is normal; the model was opened with ``confidence``.

    Returns:
        Number of label images published.

    Raises:
        DependencyError: If ``rclpy`` or, with a watch, ``diagnostic_msgs`` is not installed.
    """
    try:
        import rclpy  # type: ignore[import-not-found]

        if watch is not None:
            from diagnostic_msgs import msg as diagnostic_msgs  # type: ignore[import-not-found]
        from rclpy.qos import qos_profile_sensor_data  # type: ignore[import-not-found]
        from sensor_msgs.msg import Image as Message  # type: ignore[import-not-found]
    except ImportError as err:
        msg = (
            f"ROS 2 is not available ({err}). Source it first: source /opt/ros/DISTRO/setup.bash, "
            "and use its Python"
        )
        raise DependencyError(msg) from err
    rclpy.init()
    node = rclpy.create_node(node_name)
    publisher = node.create_publisher(Message, labels, 1)
    profile = _newest_only(qos_profile_sensor_data)
    published, classes, began, told = 0, len(runner.spec.label_space), perf_counter(), -math.inf
    diagnoses = None
    if watch is not None:
        diagnoses = node.create_publisher(
            diagnostic_msgs.DiagnosticArray, diagnostic.TOPIC, DIAGNOSES
        )

    def receive(message: Any) -> None:
        nonlocal published
        start = perf_counter()
        try:
            geometry = runner.spec.preprocessing.geometry
            image = as_shown(image_of(message), Path(images), geometry)
        except DataError as err:
            node.get_logger().error(str(err), throttle_duration_sec=5.0)
            return
        seconds, seen = start - began, None
        if watch is not None and watch.due(seconds):
            seen = signals_of(runner, image)
        found = segment(runner, image) if seen is None else seen.labels
        publisher.publish(fill(Message(), found, message.header))
        published += 1
        if seen is not None:
            diagnose(seconds, seen)
        if published % 100 == 1:
            status(f"{published} label images, {1e3 * (perf_counter() - start):.1f} ms")

    def diagnose(seconds: float, seen: FrameSignals) -> None:
        nonlocal told
        assert watch is not None
        assert diagnoses is not None
        alarm = watch.add(seconds, statistics(seen, classes))
        if alarm is not None:
            node.get_logger().warning(str(alarm))
            status(str(alarm))
        if alarm is None and seconds - told < 1:
            return
        told = seconds
        array = diagnostic_msgs.DiagnosticArray()
        array.header.stamp = node.get_clock().now().to_msg()
        array.status = [
            diagnostic.status(
                watch.state, runner.backend, diagnostic_msgs.DiagnosticStatus,
                diagnostic_msgs.KeyValue, lambda level: bytes([level]),
            )
        ]  # fmt: skip
        diagnoses.publish(array)

    node.create_subscription(Message, images, receive, profile)
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return published


def _newest_only(profile: Any) -> Any:
    """Return a copy of ROS's profile for sensors that keeps one image."""
    import copy

    newest = copy.copy(profile)
    newest.depth = 1
    return newest


def image_of(message: Any) -> Image:
    """Return a ``sensor_msgs/msg/Image`` as ``[H, W, 3]`` uint8 RGB.

    Raises:
        DataError: If its encoding is not read, or its data are too short for its size.
    """
    if message.encoding not in _TO_RGB:
        msg = f"Image of encoding {message.encoding!r}: expected one of {', '.join(_TO_RGB)}"
        raise DataError(msg)
    channels = {"mono8": 1, "rgba8": 4, "bgra8": 4}.get(message.encoding, 3)
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.frombuffer(message.data, np.uint8)
    if step < width * channels or data.size < height * step or not height * width:
        msg = (
            f"Image {width}x{height} of step {step}: expected {height} rows of at least "
            f"{width * channels} bytes, found {data.size} bytes"
        )
        raise DataError(msg)
    rows = data[: height * step].reshape(height, step)[:, : width * channels]
    pixels = rows.reshape(height, width, channels)
    code = _TO_RGB[message.encoding]
    if code is None:
        return np.ascontiguousarray(pixels)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), code), np.uint8)


def fill(message: Any, labels: LabelMap, header: Any) -> Any:
    """Fill an empty ``sensor_msgs/msg/Image`` with ``[H, W]`` uint8 labels; returns it."""
    message.header = header
    message.height, message.width = labels.shape
    message.encoding = "mono8"
    message.is_bigendian = 0
    message.step = labels.shape[1]
    # ROS's class checks every value of anything but an array, one after the other in Python.
    message.data = array("B", labels.tobytes())
    return message
