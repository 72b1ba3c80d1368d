"""Commands of the command line in processes of their own."""

import signal
import subprocess
import sys
import time
from pathlib import Path


def command(*argv, ranks=1):
    """Return the arguments of a process that runs the command line, on so many ranks."""
    own = [sys.executable, "-c", "from cli import main; main()"]
    if ranks > 1:
        own = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={ranks}", "--no-python", "--", *own,
        ]  # fmt: skip
    return [*own, *map(str, argv)]


def kill_after(argv, shards, count):
    """Start a process that writes shards, and kill it after so many; returns how many there are."""
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    while len(list(shards.glob("0*.npz"))) < count:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(list(shards.glob("0*.npz")))


def signing_keys(folder: Path) -> tuple[Path, Path]:
    """Make a private and a public Ed25519 key, as docs/engines.md says."""
    private, public = folder / "private.pem", folder / "public.pem"
    openssl = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", private]
    subprocess.run(openssl, check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public
