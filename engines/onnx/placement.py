"""On which of ONNX Runtime's providers the nodes of a graph really run."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_KERNEL = "_kernel_time"


def placed_session(
    opened: Callable[[Path], Any], feeds: Mapping[str, npt.NDArray[np.uint8]]
) -> tuple[Any, dict[str, int]]:
    """Open a session, run it once, and count.

    Args:
        opened: Opens a session that writes a profile whose name begins as it is told.
        feeds: What it is run on.

    Returns:
        The session, which profiles no longer, and the number of nodes by provider. A part of the
        graph that a provider compiles is one node.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = opened(Path(folder) / "profile")
        session.run(None, dict(feeds))
        return session, nodes_by_provider(Path(session.end_profiling()))


def nodes_by_provider(profile: Path) -> dict[str, int]:
    """Return the number of nodes by provider, most first, of a profile of one run."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    counts = Counter(
        event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith(_KERNEL)
        and event.get("args", {}).get("provider")
    )
    return dict(counts.most_common())
