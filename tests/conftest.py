"""Fixtures of several packages' tests. What they are made of lies in ``support``."""

from pathlib import Path

import pytest

import cuda_stub


@pytest.fixture(scope="session")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CUDA's runtime in host memory, compiled once."""
    return cuda_stub.cudart(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def gpu(cudart: Path, monkeypatch: pytest.MonkeyPatch) -> cuda_stub.Gpu:
    """A machine whose only GPU is that library, under the names of every CUDA package."""
    return cuda_stub.installed(monkeypatch, cudart)
