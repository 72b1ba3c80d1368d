"""Images per second of one core that the street renderer makes.

Counts processor time of the single thread, so that other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import time

import cv2

from edgeuda.street import DOMAINS, StreetDomain, render

NEEDS = "nothing beside the package"
QUICK = {"images": 1, "repeats": 1, "size": [64, 128]}


def images_per_second(domain: StreetDomain, images: int, height: int, width: int) -> float:
    start = time.process_time()
    for seed in range(images):
        render(domain, seed, height, width)
    return images / (time.process_time() - start)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=40, help="images per repeat and domain")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], metavar=("H", "W"))


def measure(given: argparse.Namespace) -> dict:
    cv2.setNumThreads(1)
    domains = {}
    for name, domain in DOMAINS.items():
        images_per_second(domain, given.images, *given.size)  # makes the tiles
        rates = [images_per_second(domain, given.images, *given.size) for _ in range(given.repeats)]
        domains[name] = {
            "images_per_second": rates, "min": min(rates), "median": statistics.median(rates)
        }  # fmt: skip
    return {
        "schema": "edgeuda.bench.street/1",
        "size": given.size,
        "images": given.images,
        "repeats": given.repeats,
        "threads": cv2.getNumThreads(),
        "domains": domains,
    }
