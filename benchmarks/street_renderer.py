"""Images per second of one core that the street renderer makes, as JSON on stdout.

Counts processor time of the single thread, so that other work on the machine disturbs less.

python benchmarks/street_renderer.py [--images 40] [--repeats 5] [--size 256 512]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import cv2

from edgeuda.street import DOMAINS, StreetDomain, render


def images_per_second(domain: StreetDomain, images: int, height: int, width: int) -> float:
    start = time.process_time()
    for seed in range(images):
        render(domain, seed, height, width)
    return images / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40, help="images per repeat and domain")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512), metavar=("H", "W"))
    args = parser.parse_args()
    height, width = args.size
    cv2.setNumThreads(1)
    domains = {}
    for name, domain in DOMAINS.items():
        images_per_second(domain, args.images, height, width)  # makes the tiles
        rates = [images_per_second(domain, args.images, height, width) for _ in range(args.repeats)]
        domains[name] = {
            "images_per_second": rates,
            "min": min(rates),
            "median": statistics.median(rates),
        }
    record = {
        "schema": "edgeuda.bench.street/1",
        "size": [height, width],
        "images": args.images,
        "repeats": args.repeats,
        "threads": cv2.getNumThreads(),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        "domains": domains,
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
