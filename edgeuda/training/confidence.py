"""The temperature by which a network's confidence is read: fitted, written, found again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from edgeuda.data.folders import spread
from edgeuda.data.images import Image, LabelMap
from edgeuda.models.network import Network
from edgeuda.models.reliability import fit_temperature, reliabilities
from edgeuda.records.labelling import ReliabilityRecord
from edgeuda.spec import ModelSpec
from edgeuda.training.fitting import Domains
from edgeuda.training.loader import Chosen, Images, Joined

logger = logging.getLogger(__name__)

RELIABILITY_FILE = ReliabilityRecord.FILE


def hold_out(domains: Domains, share: float) -> tuple[Domains, Images]:
    """Keep some source images, evenly spread, from training; returns what stays and what is kept.

    Args:
        domains: Both domains.
        share: Of the images of each source; at least one is kept unless it is 0.
    """
    whole = domains.source
    if not share:
        return domains, Chosen(whole, [])
    parts = whole.parts if isinstance(whole, Joined) else (whole,)
    taught: list[list[int]] = []
    kept: list[int] = []
    first = 0
    for part in parts:
        out = set(spread(range(len(part)), max(1, round(share * len(part)))))
        kept += [first + index for index in sorted(out)]
        taught.append([index for index in range(len(part)) if index not in out])
        first += len(part)
    left: list[Images] = [Chosen(part, rest) for part, rest in zip(parts, taught, strict=True)]
    source = Joined(left, whole.weights) if isinstance(whole, Joined) else left[0]
    stay = [index for index in range(len(whole)) if index not in set(kept)]
    return replace(domains, source=source, counts=domains.counts[stay]), Chosen(whole, kept)


def write_reliability(model: Network, spec: ModelSpec, held: Images, folder: Path) -> None:
    """Fit a temperature on held-out source images and write it beside the network."""
    temperature = round(fit_temperature(model, spec, labelled(held)), 4)
    record = reliability_record(model, spec, labelled(held), temperature)
    replace(record, images=list(held.names)).write(folder / RELIABILITY_FILE)


def reliability_record(
    model: Network,
    spec: ModelSpec,
    pairs: Iterable[tuple[Image, LabelMap]],
    temperature: float,
) -> ReliabilityRecord:
    """Return the record of a network's confidence on labelled images.

    Args:
        model: The network, in eval mode.
        spec: Its spec.
        pairs: Images with label maps.
        temperature: By which its confidence is read.
    """
    names = spec.label_space.classes
    plain, calibrated = reliabilities(model, spec, pairs, (1.0, temperature))
    return ReliabilityRecord(temperature, plain.figures(names), calibrated.figures(names))


def temperature_of(run: Path) -> float:
    """Return the temperature beside a network, 1 where none was fitted, which is said.

    Args:
        run: Run folder, or a model file in it.
    """
    path = (run if run.is_dir() else run.parent) / RELIABILITY_FILE
    if not path.exists():
        logger.info(
            "%s: no temperature was fitted (source.held = 0, or weights of others); confidence is "
            "taken as it is",
            run,
        )
        return 1.0
    return ReliabilityRecord.read(path).temperature


def labelled(images: Images) -> Iterator[tuple[Image, LabelMap]]:
    """Yield images with their label maps."""
    for index in range(len(images)):
        image, label = images[index]
        assert label is not None
        yield image, label
