"""Where things lie that tests read: the checkout, and the real images beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
"""Real images. They cannot be redistributed: tests skip where they are absent."""
DATA = Path(__file__).parent / "data"
