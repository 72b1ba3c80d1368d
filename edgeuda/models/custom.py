"""Networks of the user's own: any torch module that gives class scores, adapted and exported.

A module is wrapped by saying which of the tensors it returns are its heads. Its weights are stored
like those of our networks; its code stays where it is, so that whoever reads the file must have
registered the module, or hand it over.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeuda.errors import ConfigError, ModelError, did_you_mean
from edgeuda.models.network import Logits, Network

PREFIX = "custom:"
"""Of the architecture's name in specs."""
GROUP = "edgeuda.networks"
"""Entry points of this group are called for a `CustomNetwork` where a file asks for their name."""
AUXILIARY = 0.4
"""Weight of each auxiliary head beside the main one's 1, as usual since PSPNet."""

Heads = Sequence[str | int] | Callable[[Any], Iterable[Tensor]] | None
_REGISTERED: dict[str, Callable[[], nn.Module]] = {}


class CustomNetwork(Network):
    """A module of the user's own behind the interface of our networks.

    Args:
        module: Called with ``[N, 3, H, W]`` normalised images.
        heads: Which of what it returns are class scores ``[N, K, h, w]``, the one that counts
            first: keys of a mapping, positions in a sequence or fields, or a function of what it
            returned. None: it returns one tensor.

    Attributes:
        module: The module; its parameters all learn at the stage's base rate.
    """

    base_rate = ("",)

    def __init__(self, module: nn.Module, heads: Heads = None) -> None:
        super().__init__()
        self.module, self._pick = module, heads
        # The number of heads is known once it ran; methods ask for as many weights.
        self.heads: tuple[str, ...] = ("main",)
        self.head_weights: tuple[float, ...] = (1.0,)
        self.channels = 0

    def forward(self, x: Tensor, aux: bool = False, upsample: bool = True) -> Logits:
        """Segment normalised images."""
        found = self._tensors(self.module(x))
        if upsample:
            size = (x.shape[2], x.shape[3])
            found = [
                z if z.shape[2:] == x.shape[2:]
                else F.interpolate(z, size=size, mode="bilinear", align_corners=False)
                for z in found[: None if aux else 1]
            ]  # fmt: skip
        return Logits(found[0], tuple(found[1:]) if aux else ())

    def learn_heads(self, classes: int, height: int, width: int) -> None:
        """Look at what the module returns for one image, and refuse what cannot be trained.

        Args:
            classes: Number of classes, K.
            height: Rows of the input.
            width: Columns of the input.

        Raises:
            ModelError: If it fails, or a head is not ``[1, K, h, w]`` with h and w dividing the
                input.
        """
        mode = self.training
        self.eval()
        try:
            with torch.no_grad():
                returned = self.module(torch.zeros(1, 3, height, width))
        except (RuntimeError, TypeError, ValueError) as err:
            name = type(self.module).__name__
            msg = f"{name}: cannot segment an image of [1, 3, {height}, {width}]: {err}"
            raise ModelError(msg) from err
        finally:
            self.train(mode)
        found = self._tensors(returned)
        for number, head in enumerate(found):
            shape = list(head.shape)
            fits = (
                len(shape) == 4
                and shape[1] == classes
                and not height % shape[2]
                and not width % shape[3]
            )
            if not fits:
                msg = (
                    f"{type(self.module).__name__}: expected head {number} as [1, {classes}, h, w] "
                    f"with h and w dividing {height} and {width}, found {shape}. Say with `heads` "
                    "which tensors are class scores"
                )
                raise ModelError(msg)
        self.heads = ("main", *(f"auxiliary {i}" for i in range(1, len(found))))
        self.head_weights = (1.0, *(AUXILIARY for _ in found[1:]))

    def _tensors(self, returned: Any) -> list[Tensor]:
        pick = self._pick
        if pick is None:
            found = [returned]
        elif callable(pick):
            found = list(pick(returned))
        elif isinstance(returned, Mapping):
            found = [returned[key] for key in pick if key in returned]
        else:
            found = [
                returned[key] if isinstance(key, int) else getattr(returned, key) for key in pick
            ]
        if not found or not all(isinstance(one, Tensor) for one in found):
            kinds = ", ".join(type(one).__name__ for one in found) or "nothing"
            msg = (
                f"{type(self.module).__name__}: expected tensors of class scores, found {kinds}. "
                "Say with `heads` which of what it returns they are"
            )
            raise ModelError(msg)
        return found


def register_network(name: str, factory: Callable[[], nn.Module]) -> str:
    """Make a network known under a name; files of that name are then read with it.

    Args:
        name: Letters, digits, ``-``, ``_`` and ``.``.
        factory: Returns a `CustomNetwork`; its weights do not matter.

    Returns:
        The architecture as specs name it.

    Raises:
        ConfigError: If the name has other characters.
    """
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        msg = f"Network name: expected letters, digits, '-', '_' and '.', found {name!r}"
        raise ConfigError(msg)
    _REGISTERED[name] = factory
    return PREFIX + name


def is_custom(architecture: str) -> bool:
    """Whether a spec's architecture is a network of the user's own."""
    return architecture.startswith(PREFIX)


def custom_network(architecture: str) -> CustomNetwork:
    """Make the network that a spec names.

    Raises:
        ModelError: If nothing of that name was registered, or it is no `CustomNetwork`.
    """
    name = architecture.removeprefix(PREFIX)
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    factory = _REGISTERED.get(name)
    if factory is None and name in offered:
        factory = offered[name].load()
    if factory is None:
        hint = did_you_mean(name, [*_REGISTERED, *offered])
        msg = (
            f"Network {name!r} is not one of ours, and none of that name is registered{hint}. "
            f"Wrap it with edgeuda.wrap(..., name={name!r}) first, or offer it as an entry point "
            f"of group {GROUP!r}"
        )
        raise ModelError(msg)
    made = factory()
    if not isinstance(made, CustomNetwork):
        msg = f"Network {name!r}: expected what edgeuda.wrap makes, found {type(made).__name__}"
        raise ModelError(msg)
    return copy.deepcopy(made)
