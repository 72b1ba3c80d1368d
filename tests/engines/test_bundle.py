"""Bundles: what goes in comes out, and nothing else does."""

import hashlib
import json
import stat
import subprocess
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.errors import BundleError, OutputExistsError
from edgeuda.files import sha256
from engines import bundle
from engines.bundle import MANIFEST, SIGNATURE, open_bundle, write_bundle
from processes import signing_keys
from tiny_models import exported


@pytest.fixture
def files(tmp_path):
    (tmp_path / "in").mkdir()
    contents = {"model.onnx": exported("labels"), "scores.json": b'{"a": 1}', "LICENSE": b"free"}
    for name, content in contents.items():
        (tmp_path / "in" / name).write_bytes(content)
    roles = {"model.onnx": "model", "scores.json": "metrics", "LICENSE": "licence"}
    return [(role, tmp_path / "in" / name, {"n": 1}) for name, role in roles.items()]


@pytest.fixture
def keys(tmp_path):
    """As the documentation tells users to make them."""
    return signing_keys(tmp_path)


@pytest.fixture
def packed(files, tmp_path):
    out = tmp_path / "vehicle.edgeuda"
    write_bundle(out, files, {"name": "x"})
    return out


def test_what_goes_in_comes_out(files, packed, tmp_path):
    found = open_bundle(packed)
    assert list(found.members) == ["models/model.onnx", "metrics/scores.json", "licences/LICENSE"]
    assert found.manifest.spec == {"name": "x"}
    assert not found.signed
    assert [m.name for m in found.of("metrics")] == ["metrics/scores.json"]
    written = found.extract(tmp_path / "out")
    for (_, source, about), path in zip(files, written, strict=True):
        assert path.read_bytes() == source.read_bytes()
        member = found.members[str(path.relative_to(tmp_path / "out"))]
        assert member.sha256 == sha256(source)
        assert member.about == about
        assert found.read(member.name) == source.read_bytes()
    with pytest.raises(OutputExistsError):
        found.extract(tmp_path / "out")
    with pytest.raises(BundleError, match=r"holds no 'nothing', only models/model\.onnx"):
        found.read("nothing")
    assert zipfile.ZipFile(packed).testzip() is None  # any unpacker reads it


def test_signatures(files, keys, packed, tmp_path):
    private, public = keys
    out = tmp_path / "signed.edgeuda"
    write_bundle(out, files, {}, private)
    assert open_bundle(out, public).signed
    assert not open_bundle(out).signed  # without a key nothing was verified
    with pytest.raises(BundleError, match="is not signed, and a public key was given"):
        open_bundle(packed, public)
    other = tmp_path / "other"
    other.mkdir()
    _, foreign = signing_keys(other)
    with pytest.raises(BundleError, match=r"not signed by the owner of .*public\.pem"):
        open_bundle(out, foreign)
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-quiet", "-algorithm", "rsa", "-out", rsa], check=True)
    for key in (rsa, public, tmp_path / "absent"):
        with pytest.raises(BundleError, match="expected an Ed25519 private key"):
            write_bundle(tmp_path / "b.edgeuda", files, {}, key)
    with pytest.raises(BundleError, match="expected an Ed25519 public key"):
        open_bundle(out, private)


def rebuilt(path, change):
    """The archive written again by hand; ``change`` may return other members."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    members = change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            if isinstance(name, str):
                name = zipfile.ZipInfo(name)
            archive.writestr(name, content)


def manifest_of(members):
    return json.loads(dict(members)[MANIFEST])


def with_manifest(members, manifest):
    text = json.dumps(manifest).encode()
    return [(name, text if name == MANIFEST else content) for name, content in members]


def listed(members, name, content):
    """Add a member and list it, as an attacker without a key would."""
    manifest = manifest_of(members)
    manifest["files"].append(
        {"name": name, "role": "other", "size": len(content), "about": {},
         "sha256": hashlib.sha256(content).hexdigest()}
    )  # fmt: skip
    return [*with_manifest(members, manifest), (name, content)]


@pytest.mark.parametrize(
    "name",
    ["../evil", "files/../../evil", "/etc/passwd", "files//x", "C:\\evil", "files\\..\\evil",
     ".ssh", "files/.hidden", "files/a b", "files/ä", "files/" + "a" * 300, "files/"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(packed, name):
    rebuilt(packed, lambda members: listed(members, name, b"evil"))
    with pytest.raises(BundleError, match="no allowed name"):
        open_bundle(packed)


def test_a_name_with_a_nul_is_refused(packed):
    """Some unpackers end it there."""
    rebuilt(packed, lambda members: listed(members, "files/x_.txt", b"evil"))
    packed.write_bytes(packed.read_bytes().replace(b"files/x_.txt", b"files/x\0.txt"))
    with pytest.raises(BundleError, match="no allowed name"):
        open_bundle(packed)


def test_links_and_other_kinds_are_refused(packed):
    original = packed.read_bytes()
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR):
        info = zipfile.ZipInfo("files/link")
        info.external_attr = (kind | 0o777) << 16

        def add(members, info=info):
            kept = [
                m for m in listed(members, "files/link", b"/etc/passwd") if m[0] != "files/link"
            ]
            kept = [m for m in kept if getattr(m[0], "filename", m[0]) != "files/link"]
            return [*kept, (info, b"/etc/passwd")]

        packed.write_bytes(original)
        rebuilt(packed, add)
        with pytest.raises(BundleError, match="is no plain file"):
            open_bundle(packed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_occur_twice_are_refused(files, packed, tmp_path):
    for twin in ("models/model.onnx", "models/MODEL.onnx"):
        copy = tmp_path / "copy.edgeuda"
        copy.write_bytes(packed.read_bytes())
        rebuilt(copy, lambda members, twin=twin: [*members, (twin, b"other")])
        with pytest.raises(BundleError, match="occurs twice"):
            open_bundle(copy)
    with pytest.raises(BundleError, match="two files would be called"):
        write_bundle(tmp_path / "b.edgeuda", [*files, files[0]], {})


def test_more_and_fewer_files_than_listed_are_refused(packed, tmp_path):
    original = packed.read_bytes()
    rebuilt(packed, lambda members: [*members, ("files/extra", b"x")])
    with pytest.raises(BundleError, match="does not hold what its manifest lists: 'files/extra'"):
        open_bundle(packed)
    packed.write_bytes(original)
    rebuilt(packed, lambda members: [m for m in members if m[0] != "licences/LICENSE"])
    with pytest.raises(BundleError, match="lists: 'licences/LICENSE'"):
        open_bundle(packed)
    packed.write_bytes(original)
    rebuilt(packed, lambda members: [m for m in members if m[0] != MANIFEST])
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        open_bundle(packed)


def test_other_bytes_are_refused(packed):
    def change(members):
        return [(n, c.replace(b"free", b"evil")) for n, c in members]

    rebuilt(packed, change)
    with pytest.raises(BundleError, match="'licences/LICENSE' is not what the manifest lists"):
        open_bundle(packed)
    rebuilt(packed, lambda members: [(n, c + b"!" if "LIC" in n else c) for n, c in members])
    with pytest.raises(BundleError, match="another size than listed"):
        open_bundle(packed)


def test_a_changed_manifest_breaks_the_signature(files, keys, tmp_path):
    private, public = keys
    out = tmp_path / "signed.edgeuda"
    write_bundle(out, files, {}, private)
    rebuilt(out, lambda members: listed(members, "files/extra", b"x"))
    open_bundle(out)  # consistent in itself, which is why keys exist
    with pytest.raises(BundleError, match="not signed by the owner"):
        open_bundle(out, public)


def edited(key, value):
    def change(members):
        manifest = manifest_of(members)
        if key in manifest:
            manifest[key] = value
        else:
            manifest["files"][0][key] = value
        return with_manifest(members, manifest)

    return change


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema", "edgeuda.bundle/2"), ("files", None), ("files", [1]), ("role", "engine"),
     ("role", "metrics"), ("size", "12"), ("sha256", "00"), ("sha256", 7), ("about", [])],
)  # fmt: skip
def test_manifests_of_another_kind_are_refused(packed, key, value):
    rebuilt(packed, edited(key, value))
    with pytest.raises(BundleError, match=r"its manifest is no edgeuda\.bundle/1"):
        open_bundle(packed)


@pytest.mark.parametrize("key", ["parent", "network", "recipe_sha256", "ancestors", "old"])
def test_a_lineage_of_anything_but_checksums_is_refused(packed, key):
    listed_frames = {"file": "files/frames-old.txt", "count": 3, "sha256": "a" * 64}
    learned = {
        "recipe_sha256": "c" * 64, "replay_share": 0.5, "old": listed_frames, "new": listed_frames,
        "versions": {},
    }  # fmt: skip
    lineage = {
        "parent": "a" * 64,
        "network": "b" * 64,
        "learned": learned,
        "ancestors": [{"bundle": "a" * 64, "network": "b" * 64, "created": "[/red]"}],
    }
    original = packed.read_bytes()

    def with_lineage(members):
        return with_manifest(members, manifest_of(members) | {"lineage": lineage})

    rebuilt(packed, with_lineage)
    assert open_bundle(packed).manifest.lineage.learned.new.count == 3
    shown = CliRunner().invoke(app, ["inspect", str(packed)])
    assert "before it: bundle aaaaaaaaaaaa of [/red]" in shown.output, shown.exception
    damaged = {"ancestors": [{**lineage["ancestors"][0], "bundle": "[red]"}],
               "old": {**listed_frames, "sha256": "x"}}  # fmt: skip
    where = learned if key in learned else lineage
    where[key] = damaged.get(key, "[bold]")
    packed.write_bytes(original)
    rebuilt(packed, with_lineage)
    with pytest.raises(BundleError, match="expected a SHA-256 of"):
        open_bundle(packed)


def test_nested_and_huge_manifests_are_refused(packed, monkeypatch):
    original = packed.read_bytes()
    rebuilt(packed, lambda m: [(n, b"[" * 100_000 if n == MANIFEST else c) for n, c in m])
    with pytest.raises(BundleError, match="its manifest is no"):
        open_bundle(packed)
    packed.write_bytes(original)
    monkeypatch.setattr(bundle, "MAX_MANIFEST", 100)
    with pytest.raises(BundleError, match="is longer than 100 bytes"):
        open_bundle(packed)


def test_a_bomb_is_not_unpacked(packed, monkeypatch):
    """A member of zeros packs a thousandfold; it is read no further than listed."""
    monkeypatch.setattr(bundle, "MAX_MEMBER", 2**20)

    def add(members):
        return listed(members, "files/zeros", bytes(2**21))

    with zipfile.ZipFile(packed) as archive:
        members = add([(i.filename, archive.read(i)) for i in archive.infolist()])
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    with pytest.raises(BundleError, match="'files/zeros' is larger than"):
        open_bundle(packed)
    monkeypatch.setattr(bundle, "MAX_MEMBER", 2**30)
    monkeypatch.setattr(bundle, "MAX_TOTAL", 2**20)
    with pytest.raises(
        BundleError, match=r"unpacks to \d+ bytes, \d+ times its size.*EDGEUDA_MAX_BUNDLE"
    ):
        open_bundle(packed)
    monkeypatch.setattr(bundle, "MAX_TOTAL", 2**30)
    monkeypatch.setattr(bundle, "MAX_MEMBERS", 2)
    with pytest.raises(BundleError, match="at most 2 may be"):
        open_bundle(packed)


def test_unusual_packing_is_refused(packed):
    with zipfile.ZipFile(packed) as archive:
        members = [(i.filename, archive.read(i)) for i in archive.infolist()]
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in members:
            archive.writestr(name, content)
    with pytest.raises(BundleError, match="oddly packed"):
        open_bundle(packed)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all" * 9, bytes(4096)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "x.edgeuda"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"x\.edgeuda: is no bundle"):
        open_bundle(path)
    with pytest.raises(BundleError, match="found no such file"):
        open_bundle(tmp_path / "absent.edgeuda")


def test_names_are_checked_when_writing(files, tmp_path):
    odd = tmp_path / "in" / "ä b.json"
    odd.write_text("{}")
    with pytest.raises(BundleError, match="no allowed name"):
        write_bundle(tmp_path / "b.edgeuda", [("metrics", odd, {})], {})
    with pytest.raises(BundleError, match=r"ends in \.edgeuda"):
        write_bundle(tmp_path / "b.zip", files, {})
    with pytest.raises(BundleError, match=r"gone\.json: cannot be put into a bundle"):
        write_bundle(tmp_path / "b.edgeuda", [("metrics", tmp_path / "gone.json", {})], {})
    assert not list(tmp_path.glob("*.edgeuda"))


INPUTS = 3000
"""Mutated archives that are read."""


def test_fuzz(tmp_path, keys):
    """However an archive is damaged: refused, or every member is what it was."""
    small = tmp_path / "a.json"
    small.write_bytes(b'{"some": "metrics"}' * 4)
    path = tmp_path / "fuzz.edgeuda"
    write_bundle(
        path, [("metrics", small, {}), ("licence", tmp_path / "public.pem", {})], {}, keys[0]
    )
    original = path.read_bytes()
    whole = open_bundle(path)
    contents = {name: whole.read(name) for name in whole.members}
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(INPUTS):
        data = bytearray(original)
        kind = rng.integers(6)
        at = int(rng.integers(len(data)))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            for place in rng.integers(len(data), size=int(rng.integers(2, 20))):
                data[place] = int(rng.integers(256))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            data[at:at] = rng.integers(0, 256, int(rng.integers(1, 64)), np.uint8).tobytes()
        else:
            other = int(rng.integers(len(data)))
            data[at : at + 32] = data[other : other + 32]
        path.write_bytes(data)
        try:
            found = open_bundle(path, keys[1])
            assert {name: found.read(name) for name in found.members} == contents
            assert found.manifest == whole.manifest
        except BundleError:
            refused += 1
    assert refused > 0.8 * INPUTS


def test_the_signature_is_of_the_manifest(files, keys, tmp_path):
    out = tmp_path / "signed.edgeuda"
    write_bundle(out, files, {}, keys[0])
    with zipfile.ZipFile(out) as archive:
        text, signature = archive.read(MANIFEST), archive.read(SIGNATURE)
    (tmp_path / "m").write_bytes(text)
    (tmp_path / "s").write_bytes(signature)
    done = subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys[1], "-rawin", "-in",
         tmp_path / "m", "-sigfile", tmp_path / "s"],
        check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
