"""Which networks the records are of: before or after adaptation, and which descends from which.

A record says it (`edgeuda.records.identity`); of one that does not, only the titles that this
project itself wrote are read (`engines.report.old_records`). All else is stated, not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeuda.accuracy.evaluation import Evaluation
from edgeuda.records.identity import Identity, Role
from edgeuda.records.tradeoff import VariantRow
from engines.report.old_records import TITLES, title_of

TRUTH = "ground truth"
"""Name of the label maps that are no network's."""
UNKNOWN = 99


@dataclass(frozen=True)
class KnownNetwork:
    """What a record says of the network it is of.

    Attributes:
        name: What tables call it.
        identity: By its training run; None if the record does not say.
        checkpoint: Checksum of its checkpoint; None if that is not known.
    """

    name: str
    identity: Identity | None
    checkpoint: str | None

    @property
    def role(self) -> Role | None:
        """Whether it was adapted; by its title where the record does not say; None if unknown."""
        if self.identity is not None:
            return self.identity.role
        title = title_of(self.name)
        return None if title is None else "adapted" if TITLES[title] else "source"

    @property
    def by_title(self) -> bool:
        """Whether its role was read from its title."""
        return self.identity is None and title_of(self.name) is not None

    @property
    def order(self) -> int:
        """Its place in the order of the work: ground truth, source-only, stages, unknown."""
        if self.name == TRUTH:
            return -1
        if self.identity is not None:
            adapted = min(max(1, len(self.identity.methods)), UNKNOWN - 1)
            return adapted if self.identity.role == "adapted" else 0
        title = title_of(self.name)
        return UNKNOWN if title is None else TITLES[title]

    def descends_from(self, other: KnownNetwork) -> bool | None:
        """Whether its training began, at some distance, with another; None if that is unknown."""
        if other.checkpoint is None or self.identity is None or not self.identity.ancestors:
            return None
        return other.checkpoint in self.identity.ancestors


def network_of(e: Evaluation) -> KnownNetwork:
    """Return the network of an evaluation."""
    checkpoint = e.model_sha256 if e.model_kind == "checkpoint" else None
    return KnownNetwork(e.name, e.identity, e.identity.network if e.identity else checkpoint)


def network_of_row(row: VariantRow) -> KnownNetwork:
    """Return the network of a trade-off's variant."""
    known = row.identity
    return KnownNetwork(row.network, known, known.network if known else None)


def pairs_of(networks: Sequence[KnownNetwork]) -> list[tuple[int, int]]:
    """Return which networks are to be held against which: before adaptation, and after it.

    Of each network before adaptation the last one that descends from it; where no checksum says
    that, the first before is held against the last after.

    Args:
        networks: In the order of the work.

    Returns:
        Positions in ``networks``.
    """
    roles = [network.role for network in networks]
    adapted = [i for i, role in enumerate(roles) if role == "adapted"]
    # What an adaptation began with is the one before it, also if it is another project's network.
    before = [
        i
        for i, role in enumerate(roles)
        if role == "source"
        or (role is None and any(networks[a].descends_from(networks[i]) for a in adapted))
    ]
    pairs: list[tuple[int, int]] = []
    seen: set[str] = set()
    unsure = True
    for i in before:
        checkpoint = networks[i].checkpoint
        if checkpoint in seen:
            continue
        seen |= {checkpoint} if checkpoint else set()
        says = [(networks[a].descends_from(networks[i]), a) for a in adapted]
        known = [a for descends, a in says if descends]
        maybe = [a for descends, a in says if descends is None]
        if known:
            pairs.append((i, known[-1]))
        elif maybe and unsure:
            pairs.append((i, maybe[-1]))
            unsure = False
    return pairs


def float_form_of(int8: Evaluation, group: Sequence[Evaluation], bases: set[str]) -> int | None:
    """Return which FP32 evaluation an INT8 one is held against.

    The model it was made from; else a form of the same network; else, where no record says another
    thing, one of the same title, or the benchmark's baseline.

    Args:
        int8: The INT8 evaluation.
        group: Evaluations on the same labels.
        bases: Checksums of the FP32 models that benchmarks timed it against.

    Returns:
        A position in ``group``; None if none is known to be its float form.
    """
    title = title_of(int8.name)

    def fit(e: Evaluation) -> tuple[bool, bool, bool, bool, bool]:
        other = e.identity is not None and int8.identity is not None
        same = other and network_of(e).checkpoint == network_of(int8).checkpoint
        guess = not other or same
        return (
            int8.made_from == e.model_sha256,
            same,
            guess and title is not None and title_of(e.name) == title,
            guess and e.model_sha256 in bases,
            e.model_kind == "onnx",
        )

    found = [(fit(e), -i) for i, e in enumerate(group) if e.precision == "fp32" and any(fit(e)[:4])]
    return -max(found)[1] if found else None
