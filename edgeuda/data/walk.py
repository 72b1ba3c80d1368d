"""The one walk through a folder: links are followed, circles and hidden files are not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


def names_under(
    folder: Path,
    suffixes: Collection[str],
    folders: Callable[[str], object] = lambda _name: None,
) -> Iterator[str]:
    """Yield the files under a folder, relative to it, as the file system has them.

    No folder's listing is held. Linked folders are entered, but for one that leads back to a
    folder above it, which is said. Names that begin with a dot (temporary files, thumbnails,
    AppleDouble files) are left out, which is said too.

    Args:
        folder: Where to look.
        suffixes: Wanted endings, lower case with the dot.
        folders: Told the name of each folder that has such an ending; it is searched as others.
    """
    hidden = 0
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(folder),))]
    while waiting:
        at, above = waiting.pop()
        with os.scandir(folder / at) as entries:
            for entry in entries:
                name = at + entry.name
                wanted = name[name.rfind(".") :].lower() in suffixes
                if entry.name.startswith("."):
                    hidden += wanted
                elif entry.is_dir():
                    own = _identity(Path(entry.path))
                    if own in above:
                        logger.warning("%s: leads back to a folder above it; left out", entry.path)
                    else:
                        if wanted:
                            folders(name)
                        waiting.append((name + "/", (*above, own)))
                elif wanted:
                    yield name
    if hidden:
        logger.info("%s: left out %d files whose name begins with a dot", folder, hidden)


def _identity(folder: Path) -> tuple[int, int]:
    info = folder.stat()
    return info.st_dev, info.st_ino
