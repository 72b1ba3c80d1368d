"""How a model is quantized, as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from calibration import rules
from calibration.placement import POLICIES, Policy
from edgeuda.cluster import Cluster
from edgeuda.errors import ConfigError
from edgeuda.records.calibration import Limits
from edgeuda.records.names import ProviderName, QuantizerName, RuleName, RuntimeName

DEFAULT_RULE: RuleName = "percentile"

Report = Callable[[str, int, int], None]
"""Called with what is being done, the steps done and the steps to do."""


def silent(_what: str, _done: int, _total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Options:
    """How a model is quantized.

    Attributes:
        target: The runtime it is for.
        rule: How ranges follow from the values seen.
        percentile: Of rules that have one, in percent; None is the rule's own default.
        equalize: Whether weights of neighbouring convolutions are brought to one range first.
        correct_biases: Whether biases make up for what rounding the weights shifts.
        adapt_batch_norm: Whether batch-norm statistics are estimated anew on the frames first.
        keep_float: Patterns (``*`` and ``?``) of weight names whose convolutions stay float.
        max_drop: Budget, 0 to 1, within which blocks may stay INT8; None quantizes all.
        whole_curve: Whether the curve of drop against INT8 share is measured to its end.
        measure: Whether blocks stay float that are faster so on this machine, see
            `calibration.block_times`. What `max_drop` returns to float comes on top.
        sensitivity_frames: Frames on which blocks are compared.
        limits: What is accepted.
        threads: Threads of ONNX Runtime; None takes every usable core.
        device: Where ranges are collected.
        cluster: Workers that ranges are collected by; None collects them in this process.
        quantizer: ``modelopt`` leaves placement and ranges to nvidia-modelopt, where installed.
    """

    runtime: RuntimeName
    rule: RuleName = DEFAULT_RULE
    percentile: float | None = None
    equalize: bool = False
    correct_biases: bool = False
    adapt_batch_norm: bool = False
    keep_float: tuple[str, ...] = ()
    max_drop: float | None = None
    whole_curve: bool = False
    measure: bool = False
    sensitivity_frames: int = 16
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None
    device: ProviderName = "cpu"
    quantizer: QuantizerName = "edgeuda"
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        if self.runtime not in POLICIES:
            msg = f"Expected a runtime of {', '.join(POLICIES)}, found {self.runtime!r}"
            raise ConfigError(msg)
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            msg = f"Expected a drop between 0 and 1, found {self.max_drop}"
            raise ConfigError(msg)
        if self.sensitivity_frames < 1:
            msg = f"Expected at least one sensitivity frame, found {self.sensitivity_frames}"
            raise ConfigError(msg)
        if self.measure and (self.runtime != "ort-x86" or self.quantizer != "edgeuda"):
            msg = (
                "Blocks are timed with ONNX Runtime on this processor, expected `runtime` ort-x86 "
                f"and `quantizer` edgeuda with `measure`, found {self.runtime} and "
                f"{self.quantizer}. TensorRT chooses itself when it builds the engine"
            )
            raise ConfigError(msg)
        _ = self.to_range

    @property
    def policy(self) -> Policy:
        """How the runtime wants its graph."""
        return POLICIES[self.runtime]

    @property
    def percent(self) -> float | None:
        """The percentage in force; None if the rule has none."""
        if self.rule not in rules.PERCENTILES:
            return None
        return rules.PERCENTILES[self.rule] if self.percentile is None else self.percentile

    @property
    def to_range(self) -> rules.Rule:
        """The rule as a function."""
        percent = 100.0 if self.percent is None else self.percent
        return rules.by_name(self.rule, percent, symmetric=not self.policy.unsigned)
