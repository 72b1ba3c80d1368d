"""What a machine demands of models: every verb that opens one obeys, whoever starts it."""

import numpy as np
import pytest

from edgeuda.errors import BundleError, ConfigError
from engines import trust
from engines.bundle import write_bundle
from engines.bundle_model import model_file
from engines.opening import open_runner
from engines.trust import required_keys
from processes import signing_keys
from tiny_models import exported, random_frames


@pytest.fixture
def keys(tmp_path):
    return signing_keys(tmp_path)


@pytest.fixture
def models(tmp_path, keys):
    """A bare model, an unsigned bundle and a signed one."""
    plain = tmp_path / "m.onnx"
    plain.write_bytes(exported("labels"))
    members = [("model", plain, {"precision": "fp32", "for": None})]
    paths = plain, tmp_path / "u.edgeuda", tmp_path / "s.edgeuda"
    write_bundle(paths[1], members, {}, None)
    write_bundle(paths[2], members, {}, keys[0])
    return paths


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "SYSTEM", tmp_path / "etc/edgeuda/config.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGEUDA_PUBLIC_KEY", raising=False)


def opened(path):
    with open_runner(path, threads=1) as runner:
        size = runner.spec.preprocessing
        return runner(np.stack(random_frames(1, size.height, size.width)))


def test_bundles_open_like_models(models):
    expected = opened(models[0])
    for path in models[1:]:
        assert np.array_equal(opened(path), expected)


@pytest.mark.parametrize("place", ["system", "user", "environment"])
def test_a_demanded_signature_is_demanded_always(models, keys, place, tmp_path, monkeypatch):
    if place == "environment":
        monkeypatch.setenv("EDGEUDA_PUBLIC_KEY", str(keys[1]))
    else:
        path = trust.SYSTEM if place == "system" else tmp_path / "home/edgeuda/config.toml"
        path.parent.mkdir(parents=True)
        path.write_text(f'public_key = "{keys[1]}"\n')
    opened(models[2])
    with pytest.raises(BundleError, match=r"m\.onnx: only bundles .* are opened .*says so"):
        opened(models[0])
    with pytest.raises(BundleError, match=r"u\.edgeuda: is not signed"):
        opened(models[1])


def test_a_key_on_the_command_line_is_not_ignored(models, keys):
    with (
        pytest.raises(BundleError, match=r"m\.onnx: only bundles .*`public_key` says so"),
        model_file(models[0], "cpu", public_key=keys[1]),
    ):
        pass
    with pytest.raises(BundleError, match="leave `member`"), model_file(models[0], "cpu", "x"):
        pass


def test_nobody_takes_back_what_the_machine_demands(models, keys, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    _, public = signing_keys(other)
    trust.SYSTEM.parent.mkdir(parents=True)
    trust.SYSTEM.write_text(f'public_key = "{public}"\n')
    monkeypatch.setenv("EDGEUDA_PUBLIC_KEY", str(keys[1]))
    assert [key.said_by for key in required_keys()] == [str(trust.SYSTEM), "EDGEUDA_PUBLIC_KEY"]
    with pytest.raises(BundleError, match="not signed by the owner"):
        opened(models[2])


@pytest.mark.parametrize("text", ["public_key = 3", "[", 'publickey = "x"'])
def test_a_configuration_that_cannot_be_read_opens_nothing(models, text):
    trust.SYSTEM.parent.mkdir(parents=True)
    trust.SYSTEM.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.toml: expected"):
        opened(models[0])
