"""Which methods there are: the modules of this package, and those that others register.

A method is one file. It holds the settings, which are its section of the recipe, the method, and
one `MethodType` that says what the rest of the toolkit has to know; `register_method` makes it
known. Nothing else names it.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from edgeuda.errors import ConfigError, did_you_mean
from edgeuda.methods.base import Method
from edgeuda.methods.context import StageContext
from edgeuda.methods.settings import Optimisation, StageSettings

logger = logging.getLogger(__name__)

GROUP = "edgeuda.methods"
"""Entry points of this group are methods: each names a `MethodType`."""
LEGACY_STREAMS = 8
_ROUND = 1_000_003
_HASHED = 1 << 62


@dataclass(frozen=True)
class MethodType:
    """What the toolkit knows of a method, or of another kind of stage.

    A stage is one of three things. Most train the network by a method: ``build`` makes it. One
    that changes the network in another way says how in ``run``. One that is a procedure of several
    trainings has neither: `edgeuda.training.procedures.procedure` adds it from above.

    Attributes:
        name: Of the stage and of its section of the recipe: a small letter, then small letters,
            digits and underscores.
        settings: The section.
        title: In tables.
        label: In logs and beside progress bars.
        build: Makes the method from its settings and what the stage offers.
        run: Changes the network in place.
        stream: Number of its stream of random numbers, only for methods that had one of the first
            eight; see `stream_of`.
        needs_labelled: Whether it learns from a few labelled target images.
        small_terms: Whether its terms on target images are small by design, and no sign of a stage
            that learns nothing.
        always: Whether every recipe has the section, with its defaults; it is then part of every
            recipe's digest. Else a recipe that names the stage must have it.
        adapts: Whether it may stand in ``stages``; training on source, which every recipe has, may
            not.
        place: Of the section in written recipes, whose digests depend on it; None: after those
            that have one, by name.
    """

    name: str
    settings: type[StageSettings]
    title: str
    label: str
    build: Callable[[Any, StageContext], Method] | None = None
    run: Callable[[Any, StageContext], None] | None = None
    stream: int | None = None
    needs_labelled: bool = False
    small_terms: bool = False
    always: bool = False
    adapts: bool = True
    place: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            msg = (
                f"Method {self.name!r}: expected a name of small letters, digits and underscores "
                "that begins with a letter: it is a table of the recipe"
            )
            raise ConfigError(msg)
        if self.build is not None and not issubclass(self.settings, Optimisation):
            msg = (
                f"Method {self.name!r}: expected settings that derive from Optimisation, found "
                f"{self.settings.__name__}. The trainer asks them for steps and learning rate"
            )
            raise ConfigError(msg)
        if self.stream is not None and not 0 <= self.stream < LEGACY_STREAMS:
            msg = (
                f"Method {self.name!r}: expected a stream from 0 to {LEGACY_STREAMS - 1}, found "
                f"{self.stream}. Leave it out: it then follows from the name"
            )
            raise ConfigError(msg)

    def stream_of(self, seed: int, number: int = 0) -> int:
        """Return the seed of a stage's sampling and views, and of its round.

        Every stage draws from a stream of its own, so that none depends on those before it. The
        first methods have the numbers ``8 * seed + stream``, which runs of earlier versions drew
        from and go on with. They are used up: a ninth number would be the first stream of the next
        seed, and two seeds of a comparison would share their draws. Every other stream is a hash of
        name, seed and round, and lies above all numbers of the first kind.

        Args:
            seed: Of the recipe.
            number: Of the round, 0 in stages that have none.
        """
        if self.stream is not None:
            return seed * LEGACY_STREAMS + self.stream + _ROUND * number
        text = f"{self.name}/{seed}/{number}".encode()
        digest = hashlib.blake2b(text, digest_size=8, person=b"edgeuda.stream").digest()
        return _HASHED | int.from_bytes(digest, "big") % _HASHED  # torch takes 63 bits


class Methods(Mapping[str, MethodType]):
    """All methods by name, in the order of written recipes.

    Those of this package are found by looking into its modules, those of other packages by their
    entry points, whenever the mapping is looked at: what is installed or registered later counts.

    Attributes:
        broken: Entry points that could not be loaded, and why.
    """

    def __init__(self) -> None:
        self._known: dict[str, MethodType] = {}
        self._complete = False
        self.broken: dict[str, str] = {}

    def add(self, kind: MethodType) -> None:
        """Make a method known; see `register_method`."""
        known = self._known.setdefault(kind.name, kind)
        if known != kind:
            msg = (
                f"Method {kind.name!r}: there is one of this name already ({known.title}). Take "
                "another name, or forget_method() the first"
            )
            raise ConfigError(msg)

    def remove(self, name: str) -> None:
        """Forget a method; see `forget_method`."""
        self._known.pop(name, None)

    def __getitem__(self, name: str) -> MethodType:
        self._look(only=name)
        if name in self._known:
            return self._known[name]
        if name in self.broken:
            msg = f"Method {name!r}: {self.broken[name]}"
            raise ConfigError(msg)
        msg = f"Unknown method {name!r}{did_you_mean(name, [*self])}"
        raise KeyError(msg)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        self._look()

        def place(kind: MethodType) -> tuple[bool, int, str]:
            return kind.place is None, kind.place or 0, kind.name

        return iter([kind.name for kind in sorted(self._known.values(), key=place)])

    def __len__(self) -> int:
        self._look()
        return len(self._known)

    def _look(self, only: str | None = None) -> None:
        """Import the package's modules, once, and load entry points; ``only`` the one asked for."""
        if not self._complete:
            package = importlib.import_module(__package__)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{__package__}.{module.name}")
            self._complete = True
        if only in self._known:
            return
        for entry in entry_points(group=GROUP):
            if entry.name not in self._known and only in (None, entry.name):
                self._load(entry.name, entry.value, entry.load)

    def _load(self, name: str, value: str, load: Callable[[], Any]) -> None:
        try:
            kind = load()
            if not isinstance(kind, MethodType) or kind.name != name:
                what = repr(kind.name) if isinstance(kind, MethodType) else type(kind).__name__
                msg = f"expected a MethodType called {name!r}, found {what}"
                raise TypeError(msg)
            self.add(kind)
        except Exception as err:  # whatever the module of another package raises
            if name not in self.broken:
                logger.warning("Entry point %s = %s cannot be used: %s", name, value, err)
            self.broken[name] = f"entry point {value} cannot be used: {err}"
        else:
            self.broken.pop(name, None)


METHODS = Methods()


def register_method(kind: MethodType) -> MethodType:
    """Make a method known to recipes, training and records; returns it.

    Raises:
        ConfigError: If another one has its name.

    Example:
        >>> import edgeuda
        >>> from edgeuda.methods.entropy import EntropyMinimisation, EntropySettings
        >>> from edgeuda.methods.registry import METHODS, MethodType, forget_method
        >>> kind = MethodType(
        ...     "calm", EntropySettings, title="entropy, weighted once more", label="calm",
        ...     build=lambda settings, stage: EntropyMinimisation(settings, stage.weights),
        ... )
        >>> edgeuda.register_method(kind).name in METHODS
        True
        >>> forget_method("calm")
    """
    METHODS.add(kind)
    return kind


def forget_method(name: str) -> None:
    """Take a registered method back, as a notebook does that defines it anew; nothing if unknown.

    One that comes from an entry point is found again at the next look.
    """
    METHODS.remove(name)
