"""Fixtures of several packages' tests. What they are made of lies in ``support``."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import cuda_stub


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, also for the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEUDA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A handler that stays is inherited by what is forked later, which then never ends."""
    both = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in both]
    yield
    assert [signal.getsignal(number) for number in both] == before


@pytest.fixture(scope="session")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CUDA's runtime in host memory, compiled once."""
    return cuda_stub.cudart(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def gpu(cudart: Path, monkeypatch: pytest.MonkeyPatch) -> cuda_stub.Gpu:
    """A machine whose only GPU is that library, under the names of every CUDA package."""
    return cuda_stub.installed(monkeypatch, cudart)
