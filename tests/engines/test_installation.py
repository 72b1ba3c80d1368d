"""The next network on a vehicle: taken if it passes, and back if it does not do."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from math import comb

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from edgeuda.data.images import decode_image
from edgeuda.errors import BundleError, ConfigError, ModelError, OutputExistsError
from edgeuda.files import LOCK_FILE, alone, sha256
from edgeuda.records.installation import Demands, Watched
from edgeuda.records.live import LiveRecord
from edgeuda.records.watch import Alarm, WatchRecord
from engines import installation
from engines.bundle import open_bundle
from engines.bundle_model import CURRENT
from engines.installation import (
    PREVIOUS,
    STARTS,
    as_many,
    attempt,
    fall_back,
    install,
    note_alarms,
    read,
)
from engines.opening import open_runner
from engines.packing import ACCEPTANCE, pack
from interruptions import changes_made
from places import ROOT
from processes import signing_keys
from tiny_models import exported, random_frames, write_frames


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Three networks, each with its acceptance frames, and one without."""
    folder = tmp_path_factory.mktemp("bundles")
    write_frames(folder / "frames", random_frames(9, 90, 200))
    found = []
    for seed in range(3):
        model = folder / f"{seed}.onnx"
        model.write_bytes(exported(seed=seed))
        found.append(folder / f"{seed}.edgeuda")
        pack([model], found[-1], acceptance=folder / "frames")
    pack([folder / "0.onnx"], folder / "bare.edgeuda")
    return [*found, folder / "bare.edgeuda"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(installation, "TIMED", 2)
    monkeypatch.setattr(installation, "WARM", 1)


def current(into):
    return (into / CURRENT).resolve().stem


def test_a_bundle_has_frames_and_what_each_model_makes_of_them(bundles):
    bundle = open_bundle(bundles[0])
    members = bundle.of("acceptance")
    assert len(members) == 2 * ACCEPTANCE
    with open_runner(bundles[0], 1) as runner:
        for number in range(ACCEPTANCE):
            frame, labels = (
                np.frombuffer(bundle.read(f"acceptance/{name}frame-{number}.png"), np.uint8)
                for name in ("", "0.onnx-")
            )
            image, wanted = decode_image(frame), decode_image(labels)[..., 0]
            assert image.shape == (64, 128, 3)
            np.testing.assert_array_equal(runner(image[None])[0], wanted)


def test_the_network_before_is_kept_and_no_other(bundles, tmp_path, quick):
    into = tmp_path / "vehicle"
    sums = [sha256(bundle) for bundle in bundles]
    done = install(bundles[0], into, threads=1)
    assert (done.acceptance.frames, done.acceptance.agreement) == (ACCEPTANCE, 1.0)
    assert done.acceptance.exact
    assert 0 < done.milliseconds["50"] <= done.milliseconds["95"]
    assert not (into / PREVIOUS).exists()
    for number in (1, 2):
        install(bundles[number], into, threads=1)
        assert current(into) == sums[number]
        assert (into / PREVIOUS).resolve().stem == sums[number - 1]
    assert sha256(into / CURRENT) == sums[2]
    assert not (into / f"{sums[0]}.edgeuda").exists()
    assert [one.action for one in read(into).history] == ["installed"] * 3
    with open_runner(into / CURRENT, 1) as runner, open_runner(bundles[2], 1) as same:
        image = random_frames(1, 64, 128)[0][None]
        np.testing.assert_array_equal(runner(image), same(image))
    back = fall_back(into, "the road was wet")
    assert (back.sha256, back.bundle) == (sums[1], "1.edgeuda")
    assert current(into) == sums[1]
    with pytest.raises(BundleError, match="expected a network that ran before, found none"):
        fall_back(into, "again")
    assert [one.reason for one in read(into).history][-1] == "the road was wet"


def test_what_does_not_pass_is_refused_and_the_old_one_stays(bundles, tmp_path, quick):
    into = tmp_path / "vehicle"
    install(bundles[0], into, threads=1)
    before = current(into)
    damaged = tmp_path / "damaged.edgeuda"
    content = bytearray(bundles[1].read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(BundleError, match="Do not use it"):
        install(damaged, into, threads=1)
    with pytest.raises(BundleError, match=r"takes .* ms \(95th percentile .*budget is 0\.001 ms"):
        install(bundles[1], into, threads=1, demands=Demands(budget_ms=0.001))
    with pytest.raises(BundleError, match="holds no acceptance frames"):
        install(bundles[3], into, threads=1, demands=Demands(frames=True))
    with pytest.raises(BundleError, match="is the current network of"):
        install(bundles[0], into, threads=1)
    assert current(into) == before
    history = read(into).history
    assert [one.action for one in history] == ["installed", "refused", "refused", "refused"]
    assert "budget" in history[2].reason
    assert len(list(into.glob("*.edgeuda"))) == 2  # the network, and the link to it
    with alone(into), pytest.raises(OutputExistsError, match="another process"):
        install(bundles[1], into, threads=1)
    assert install(bundles[3], into, threads=1).acceptance.frames == 0


def test_labels_must_be_the_same_where_the_machine_is(bundles, tmp_path, quick, monkeypatch):
    """Another machine may round otherwise, up to a limit."""
    folder = tmp_path / "in"
    write_frames(folder, random_frames(4, 64, 128, seed=5))
    model = tmp_path / "model.onnx"
    model.write_bytes(exported(seed=1))
    write_label, changed = installation_labels(monkeypatch)
    pack([model], tmp_path / "one.edgeuda", acceptance=folder)
    assert changed[0] == ACCEPTANCE
    assert write_label is not None
    with pytest.raises(BundleError, match=r"99\.988 % of the pixels .* and all have to be"):
        install(tmp_path / "one.edgeuda", tmp_path / "same", threads=1)
    here = installation.identity()
    monkeypatch.setattr(installation, "identity", lambda: here | {"cpu_flags": "others"})
    done = install(tmp_path / "one.edgeuda", tmp_path / "other", threads=1)
    assert not done.acceptance.exact
    assert done.acceptance.agreement == pytest.approx(1 - 1 / (64 * 128))
    with pytest.raises(BundleError, match=r"and 99\.999 % have to be"):
        install(
            tmp_path / "one.edgeuda", tmp_path / "strict", threads=1,
            demands=Demands(agreement=0.99999),
        )  # fmt: skip
    words = ["install", tmp_path / "one.edgeuda", "--into", tmp_path / "typed", "--threads", 1]
    with pytest.raises(BundleError, match=r"and 99\.999 % have to be"):
        CliRunner().invoke(
            app, [*map(str, words), "--min-agreement", "99.999"], catch_exceptions=False
        )


def installation_labels(monkeypatch):
    """Let a bundle be packed with one wrong pixel in each label map."""
    from engines import packing

    real, changed = packing.write_label, [0]

    def wrong(path, label):
        label = label.copy()
        label[3, 5] = (label[3, 5] + 1) % 11
        changed[0] += 1
        real(path, label)

    monkeypatch.setattr(packing, "write_label", wrong)
    return real, changed


def test_killed_at_any_change_one_of_both_networks_works(bundles, tmp_path, quick):
    """Before each change of the disk; what was left is cleared by the next installation."""

    def start(name):
        into = tmp_path / name
        install(bundles[0], into, threads=1)
        install(bundles[1], into, threads=1)
        return into

    sums = [sha256(bundle) for bundle in bundles]
    whole = start("whole")
    total = changes_made(lambda: install(bundles[2], whole, threads=1), whole)
    assert total > 8
    ends = set()
    for at in range(1, total + 1):
        into = start(f"at{at}")
        with suppress(KeyboardInterrupt):
            changes_made(lambda into=into: install(bundles[2], into, threads=1), into, at)
        ends.add(current(into))
        assert current(into) in sums[1:3]
        open_bundle(into / CURRENT)
        if current(into) == sums[1]:
            install(bundles[2], into, threads=1)
        assert current(into) == sums[2]
        assert fall_back(into, "").sha256 == sums[1]
        install(bundles[0], into, threads=1)
        assert {path.name for path in into.iterdir()} == {
            CURRENT, PREVIOUS, "installed.json", f"{sums[0]}.edgeuda", f"{sums[1]}.edgeuda",
        }  # fmt: skip
    assert ends == {sums[1], sums[2]}
    for at in range(1, changes_made(lambda: fall_back(whole, ""), whole) + 1):
        into = start(f"back{at}")
        with suppress(KeyboardInterrupt):
            changes_made(lambda into=into: fall_back(into, ""), into, at)
        assert current(into) in sums[:2]
        open_bundle(into / CURRENT)


@pytest.fixture
def vehicle(bundles, tmp_path, quick):
    into = tmp_path / "vehicle"
    for bundle in bundles[:2]:
        install(bundle, into, threads=1)
    return into


def test_a_network_that_crashes_again_and_again_is_given_up(bundles, vehicle, caplog):
    """A process that is killed cannot say so."""
    script = (
        "import sys, pathlib, os, signal\n"
        "from engines.installation import attempt\n"
        "with attempt(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(vehicle / CURRENT)]
    for _ in range(3):
        killed = subprocess.run(command, cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert current(vehicle) == sha256(bundles[1])
    with attempt(vehicle / CURRENT) as ran:
        assert ran == current(vehicle) == sha256(bundles[0])
    assert "fell back to the network before: 3 starts within 600 s" in caplog.text
    assert read(vehicle).history[-1].action == "fell back"
    # It has been well, so it is no longer suspected, whatever cuts it off.
    for _ in range(4):
        subprocess.run(command, cwd=ROOT, check=False)
    with attempt(vehicle / CURRENT) as ran:
        assert ran == sha256(bundles[0])
    assert caplog.text.count("3 starts within") == 1
    # Where there is nothing to go back to it goes on.
    (vehicle / STARTS).unlink()
    for _ in range(3):
        subprocess.run(command, cwd=ROOT, check=False)
    with attempt(vehicle / CURRENT) as ran:
        assert ran == sha256(bundles[0])
    assert "found none to fall back to" in caplog.text


def test_what_is_no_crash_does_not_count(vehicle, monkeypatch):
    log, kept = vehicle / STARTS, current(vehicle)
    with pytest.raises(ConfigError), attempt(vehicle / CURRENT):
        raise ConfigError("no such camera")
    assert not log.read_text()
    with pytest.raises(ModelError), attempt(vehicle / CURRENT):
        raise ModelError("an operator that this runtime lacks")
    assert len(log.read_text().splitlines()) == 1
    with pytest.raises(ConfigError), attempt(vehicle / CURRENT):
        raise ConfigError("a typing error leaves what is known of crashes")
    assert len(log.read_text().splitlines()) == 1
    alive = f"{time.time():.3f} {os.getppid()}\n"  # others run at the same time
    log.write_text("12.000 99999999\n" * 5 + alive * 5 + "13.0")  # long ago, alive, half a line
    with attempt(vehicle / CURRENT) as ran:
        assert ran == kept
    assert log.read_text() == f"well {kept}\n"
    log.unlink()
    monkeypatch.setattr(installation, "WELL", 0.05)

    def lasts():
        while not log.read_text().startswith("well"):
            pass
        raise ModelError("after hours")

    with pytest.raises(ModelError), attempt(vehicle / CURRENT):
        lasts()
    assert log.read_text() == f"well {kept}\n"
    with attempt(vehicle / f"{kept}.edgeuda") as ran:  # a file beside it is nobody's current one
        assert ran is None


def test_other_files_of_the_folder_and_other_links_are_left_alone(bundles, tmp_path, quick):
    into = tmp_path / "vehicle"
    into.mkdir()
    mine = into / "mine.edgeuda"
    mine.write_bytes(bundles[0].read_bytes())
    install(mine, into, threads=1)
    for bundle in bundles[1:3]:
        install(bundle, into, threads=1)
    assert mine.exists()
    link = tmp_path / "x.edgeuda"
    (tmp_path / "stored").write_bytes(bundles[0].read_bytes())
    link.symlink_to(tmp_path / "stored")
    with open_runner(link, 1):
        pass
    with pytest.raises(BundleError, match="found no file that can be read"):
        install(tmp_path / "nothing.edgeuda", into)


def test_a_damaged_network_is_neither_kept_nor_gone_back_to(bundles, vehicle):
    sums = [sha256(bundle) for bundle in bundles]
    slot = vehicle / f"{sums[0]}.edgeuda"
    slot.write_bytes(slot.read_bytes()[:-5])
    with pytest.raises(BundleError, match="is damaged, and the current one stays"):
        fall_back(vehicle, "")
    assert current(vehicle) == sums[1]
    install(bundles[0], vehicle, threads=1)  # a whole copy mends it
    assert sha256(slot) == sums[0]
    (vehicle / "installed.json").write_text("{")
    assert fall_back(vehicle, "").sha256 == sums[1]
    assert (vehicle / "installed.json.damaged").exists()
    assert len(read(vehicle).history) == 1


def drive(alarms, windows, per_hour=0.1):
    found = [Alarm(float(n), None, "light", {}) for n in range(alarms)]
    return WatchRecord(per_hour, 10.0, windows, 0, [], found, [])


def test_more_alarms_than_the_network_before_gave_are_a_way_back(bundles, tmp_path, quick):
    into, sums = tmp_path / "vehicle", [sha256(bundle) for bundle in bundles]
    install(bundles[0], into, threads=1)
    assert note_alarms(into / CURRENT, sums[0], drive(1, 7200)) is None
    install(bundles[1], into, threads=1)
    assert note_alarms(into / CURRENT, sums[1], drive(1, 720)) is None  # may well be chance
    assert note_alarms(into / CURRENT, sums[1], drive(50, 720, per_hour=30)) is None  # no measure
    assert read(into).watched[:2] == (
        Watched(sums[0], 0.1, 10.0, 10.0, 1, 1), Watched(sums[1], 0.1, 10.0, 1.0, 1, 1),
    )  # fmt: skip
    assert as_many(3, 2, 1, 10) < 0.05
    assert note_alarms(into / CURRENT, sums[1], drive(2, 720)) is None  # it is the second look
    done = note_alarms(into / CURRENT, sums[1], drive(5, 720))
    assert done is not None
    assert (done.action, current(into)) == ("fell back", sums[0])
    assert "8 alarms in 3.00 h, 1 in 10.00 h before" in done.reason
    assert note_alarms(into / CURRENT, sums[0], drive(50, 720)) is None  # nothing before it
    assert note_alarms(bundles[0], None, drive(50, 720)) is None


def test_alarms_that_cannot_be_noted_do_not_end_a_drive(vehicle, monkeypatch, caplog):
    monkeypatch.setattr(installation, "PATIENCE", 0.2)
    with alone(vehicle):
        assert note_alarms(vehicle / CURRENT, current(vehicle), drive(1, 720)) is None
    assert "the alarms of this drive are not counted" in caplog.text
    assert not read(vehicle).watched


def test_a_lock_that_goes_while_it_is_opened_is_no_lock(tmp_path, monkeypatch):
    """Its owner removes it at the end, while another process may have it open already."""
    path, real, gone = tmp_path / LOCK_FILE, fcntl.flock, []

    def flock(file, how):
        if not gone:
            path.unlink()
            gone.append(True)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone(tmp_path), pytest.raises(OutputExistsError), alone(tmp_path):
        pass
    assert gone


def test_the_chance_of_so_many_alarms():
    assert as_many(0, 1, 5, 1) == pytest.approx(1)
    assert as_many(3, 1, 0, 1) == pytest.approx(1 / 8)
    tail = sum(comb(5, n) * (1 / 6) ** n * (5 / 6) ** (5 - n) for n in (4, 5))
    assert as_many(4, 2, 1, 10) == pytest.approx(tail)
    assert 0.5 < as_many(600, 10, 600, 10) < 0.52


def test_a_signature_can_be_demanded(bundles, tmp_path, quick, monkeypatch):
    private, public = signing_keys(tmp_path)
    monkeypatch.setenv("EDGEUDA_PUBLIC_KEY", str(public))
    with pytest.raises(BundleError, match="is not signed"):
        install(bundles[0], tmp_path / "vehicle", threads=1)
    model = tmp_path / "model.onnx"
    model.write_bytes(exported())
    pack([model], tmp_path / "signed.edgeuda", private_key=private)
    install(tmp_path / "signed.edgeuda", tmp_path / "vehicle", threads=1)
    with open_runner(tmp_path / "vehicle" / CURRENT, 1):
        pass


def test_the_verbs(bundles, tmp_path):
    def typed(*words):
        done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    into, frames = tmp_path / "vehicle", bundles[0].parent / "frames"
    said = typed("install", bundles[0], "--into", into, "--threads", 1, "--budget-ms", 10_000)
    assert "4 acceptance frames: at least 100.000 % of the pixels of each" in said
    assert "the budget is 10000 ms" in said
    typed("install", bundles[1], "--into", into, "--threads", 1)
    out = tmp_path / "drive"
    typed("run", "--model", into / CURRENT, "--target", frames, "--out", out, "--threads", 1)
    ran = LiveRecord.read(out / "run.json")
    assert ran.frames.segmented == 9
    assert (into / STARTS).read_text().startswith("well ")
    with pytest.raises(ModelError, match=r"found a folder of installed networks.*current\.edgeuda"):
        typed("run", "--model", into, "--target", frames, "--out", tmp_path / "no")
    assert "0.edgeuda" in typed("fallback", "--into", into, "--reason", "too many alarms")
    said = typed("installed", into)
    assert f"current: {sha256(bundles[0])[:12]}" in said
    assert "previous: none" in said
    assert "fell back" in said
    record = json.loads((into / "installed.json").read_text())
    assert record["schema"] == "edgeuda.installation/1"
    assert record["history"][-1]["reason"] == "too many alarms"
    assert str((into / CURRENT).readlink()) == f"{sha256(bundles[0])}.edgeuda"
