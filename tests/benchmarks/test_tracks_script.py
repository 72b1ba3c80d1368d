"""The tracks can be run as a script, as issues and records name it."""

import subprocess
import sys

from places import ROOT


def test_the_script_takes_a_folder():
    done = subprocess.run(
        [sys.executable, "benchmarks/adaptation_tracks.py", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--track" in done.stdout
    assert "--work" in done.stdout
