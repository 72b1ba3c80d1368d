"""Several labelled sources as one: a simulator and her own labelled city, say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeuda.data.folders import LabelledFolder, labelled_folder, tells_space
from edgeuda.errors import ConfigError
from edgeuda.labels import LabelSpace


@dataclass(frozen=True)
class Sources:
    """Labelled folders in one label space.

    Attributes:
        folders: At least one.
        weights: How often images of each are drawn, relative to the others.
    """

    folders: tuple[LabelledFolder, ...]
    weights: tuple[float, ...]

    @property
    def space(self) -> LabelSpace:
        """Label space of all folders."""
        return self.folders[0].space

    def identity(self) -> list[str]:
        """Return what tells these images from others: names within folders, contents, weights.

        A folder that was moved is the same.
        """
        names = [
            str(image.relative_to(root) if image.is_relative_to(root) else image)
            for root, images in ((f.root, [p.image for p in f.pairs]) for f in self.folders)
            for image in images
        ]
        names += [folder.stamp for folder in self.folders]
        return names + [f"weight {weight}" for weight in self.weights if len(self.folders) > 1]


def open_sources(
    roots: Path | Sequence[Path],
    space: LabelSpace | None = None,
    stored: LabelSpace | None = None,
    *,
    weights: Sequence[float] = (),
    ignore_unmapped: bool = False,
) -> Sources:
    """Index one or more labelled folders in the label space of the first, or a given one.

    A class that a source lacks occurs in none of its images: nothing there is counted for or
    against it but what its labels say of the pixel.

    Args:
        roots: One folder, or several.
        space: Label space wanted; by default that of the first.
        stored: Label space of the files. With several folders it counts for those that do
            not tell it themselves.
        weights: One per folder; by default all weigh alike.
        ignore_unmapped: See `labelled_folder`.

    Raises:
        ConfigError: If there are not as many weights as folders, or one is not positive.
        DataError: See `labelled_folder`.
    """
    paths = [roots] if isinstance(roots, Path) else list(roots)
    given = tuple(weights) or (1.0,) * len(paths)
    if len(given) != len(paths) or min(given) <= 0:
        msg = (
            f"`source_weights`: expected one positive number for each of the {len(paths)} sources, "
            f"found {', '.join(f'{weight:g}' for weight in given)}"
        )
        raise ConfigError(msg)
    folders: list[LabelledFolder] = []
    for path in paths:
        own = len(paths) > 1 and tells_space(path)
        wanted = folders[0].space if folders else space
        folders.append(
            labelled_folder(path, wanted, None if own else stored, ignore_unmapped=ignore_unmapped)
        )
    return Sources(tuple(folders), given)
