"""The next network on a vehicle: checked before it is taken, and one step back at any time.

A folder holds bundles under the names of their checksums. The link `current.edgeuda` says which
one runs, `previous.edgeuda` which one ran before; a link is switched whole, so that whenever a
process or the power ends, one of the two is current. Whatever takes a bundle takes the link.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from edgeuda.data.images import Image, LabelMap, decode_image, decode_label
from edgeuda.errors import (
    BundleError,
    DataError,
    EdgeudaError,
    ModelError,
    OutputError,
    OutputExistsError,
)
from edgeuda.files import alone, is_temporary, now_utc, sha256, write_atomic, write_text
from edgeuda.records.bundle import FOLDERS, Member
from edgeuda.records.installation import (
    Acceptance,
    Action,
    Demands,
    Event,
    Installation,
    Watched,
)
from edgeuda.records.names import DeviceName
from edgeuda.records.percentiles import samples_needed
from edgeuda.records.watch import WatchRecord
from engines.bundle import SUFFIX, Bundle, open_bundle
from engines.bundle_model import CURRENT, choose_member, folder_of, model_file
from engines.kept_engines import FOLDER, engines_of
from engines.machine.hardware import ROUNDING, identity
from engines.opening import open_runner
from engines.runner import Runner

logger = logging.getLogger(__name__)

PREVIOUS, STARTS = f"previous{SUFFIX}", "starts.log"
SLOT = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}")
PERCENTILES = (50, 95)
WARM, TIMED = 3, samples_needed(95)
"""Calls before those that are timed, and these."""
HISTORY = 100
"""Events that are kept."""
CRASHES, WITHIN, WELL = 3, 600.0, 30.0
"""Starts within so many seconds that make a crash loop, and how long one lasts that is well."""
PROVED = "well "
"""Begins the line that says which network has been well."""
SIGNIFICANT = 0.05
"""Chance that a network is left though both give alarms alike, over all its drives together."""
PATIENCE = 10.0
"""Seconds for which the end of a drive waits for another process."""


def install(
    bundle: Path,
    into: Path,
    *,
    device: DeviceName = "cpu",
    threads: int | None = None,
    public_key: Path | None = None,
    demands: Demands | None = None,
    replacing: str | None = None,
) -> Event:
    """Check a bundle as it will run here, and make it current if it passes.

    Args:
        bundle: The file, ``.edgeuda``.
        into: The vehicle's folder; made if it is not there.
        device: Where it will run.
        threads: As in `open_runner`.
        public_key: As in `model_file`.
        demands: What it has to keep.
        replacing: Checksum of the bundle that has to be current; None replaces any.

    Returns:
        What is in the history now.

    Raises:
        BundleError: If it is damaged, unsigned where a signature is demanded, is current already,
            is to replace another network than the current one, or does not keep what is demanded.
            The network that was current stays so.
        EdgeudaError: If the model cannot be opened; likewise.
        OutputExistsError: If another process installs there.
    """
    demands = demands or Demands()
    with alone(into):
        checksum = _checksum(bundle)
        slot = into / f"{checksum}{SUFFIX}"
        if _linked(into, CURRENT) == slot.name:
            msg = f"{bundle}: is the current network of {into} already"
            raise BundleError(msg)
        if replacing is not None and _linked(into, CURRENT) != f"{replacing}{SUFFIX}":
            msg = (
                f"{bundle}: was to replace the network {replacing[:12]}, which is not the current "
                f"one of {into} any more"
            )
            raise BundleError(msg)
        event = Event(now_utc(), "installed", bundle.name, checksum, demands=demands)
        try:
            if not slot.exists() or sha256(slot) != checksum:
                write_atomic(slot, lambda path: shutil.copyfile(bundle, path))
            if sha256(slot) != checksum:
                msg = f"{bundle}: changed while it was copied, or {into} does not keep what it gets"
                raise BundleError(msg)
            event = _checked(slot, event, device, threads, public_key, demands)
            _say_parent(event, _linked(into, CURRENT))
        except EdgeudaError as err:
            if slot.name != _linked(into, PREVIOUS):
                slot.unlink(missing_ok=True)
                _tidy_engines(into)
            reason = str(err).replace(str(slot), str(bundle))
            _note(into, replace(event, action="refused", reason=reason))
            raise type(err)(reason) from err
        current = _linked(into, CURRENT)
        if current is not None:
            _link(into, PREVIOUS, current)
        _link(into, CURRENT, slot.name)
        (into / STARTS).unlink(missing_ok=True)
        _note(into, event)
        _tidy(into)
    return event


def fall_back(into: Path, reason: str) -> Event:
    """Make the network current that ran before; the other one is not fallen back to again.

    Args:
        into: The vehicle's folder.
        reason: Why, for the history.

    Raises:
        BundleError: If there is none, or it is damaged.
        OutputExistsError: If another process installs there.
    """
    with alone(into):
        previous = _linked(into, PREVIOUS)
        if previous is None or previous == _linked(into, CURRENT):
            msg = (
                f"{into}: expected a network that ran before, found none to fall back to. "
                "edgeuda install takes another bundle"
            )
            raise BundleError(msg)
        if sha256(into / previous) != Path(previous).stem:
            msg = f"{into}: the network that ran before is damaged, and the current one stays"
            raise BundleError(msg)
        open_bundle(into / previous)
        _link(into, CURRENT, previous)
        (into / PREVIOUS).unlink()
        (into / STARTS).unlink(missing_ok=True)
        return _note(into, _event("fell back", Path(previous).stem, reason, _history(into)))


def read(into: Path) -> Installation:
    """Return the history of a vehicle's folder; empty if there is none.

    Raises:
        DataError: If it is damaged.
    """
    path = into / Installation.FILE
    return Installation.read(path) if path.exists() else Installation()


def refuse(into: Path, bundle: Path, reason: str) -> Event:
    """Note in the history that a bundle was refused before anybody tried to install it.

    Args:
        into: The vehicle's folder.
        bundle: The file.
        reason: Why, in a sentence.

    Raises:
        BundleError: If the bundle is damaged.
        OutputExistsError: If another process installs there.
    """
    event = Event(now_utc(), "refused", bundle.name, _checksum(bundle), reason)
    event = _descended(event, open_bundle(bundle))
    with _patiently(into):
        return _note(into, event)


def left_for(into: Path, checksum: str) -> Event | None:
    """Return when a network was fallen back to from one that was adapted from it on this vehicle.

    Adapting it again would end the same way. Another installation begins anew.

    Args:
        into: The vehicle's folder.
        checksum: Of the bundle that was fallen back to.
    """
    child = False
    found = None
    for event in _history(into).history:
        if event.action == "installed":
            child = event.driven is not None and event.parent == checksum
            found = None
        elif event.action == "fell back":
            found = event if child and event.sha256 == checksum else None
    return found


def demanded(into: Path, checksum: str) -> Demands:
    """Return what a network had to keep when it was installed, if the history still says.

    Args:
        into: The vehicle's folder.
        checksum: Of its bundle.
    """
    for event in reversed(_history(into).history):
        if event.sha256 == checksum and event.action == "installed":
            return event.demands or Demands()
    return Demands()


def current_in(into: Path) -> str | None:
    """Return the checksum of the bundle that is current in a vehicle's folder; None without one."""
    found = _linked(into, CURRENT)
    return None if found is None else Path(found).stem


@contextmanager
def attempt(model: Path) -> Iterator[str | None]:
    """Run a network, and fall back first if it has crashed again and again.

    Nothing is done where the model is not the current one of a vehicle's folder. A network that has
    once run for `WELL` seconds, or to an orderly end, is proved. Before, each start counts whose
    process is gone and did not say why; `CRASHES` of them within `WITHIN` seconds make the next
    one fall back. A process that ends as the command line, the camera or the disk are not as they
    should be has not crashed; one that cannot open the model has.

    Args:
        model: What is opened within.

    Yields:
        The checksum of the network's bundle; None where the model is no current one.
    """
    into = folder_of(model)
    if into is None:
        yield None
        return
    log, now = into / STARTS, time.time()
    began = [
        when for when, process in _starts(into) if 0 <= now - when <= WITHIN and _gone(process)
    ]
    if len(began) >= CRASHES:
        reason = f"{len(began)} starts within {WITHIN:.0f} s did not last {WELL:.0f} s"
        try:
            fall_back(into, reason)
            logger.warning("%s: fell back to the network before: %s", into, reason)
        except EdgeudaError as err:
            logger.warning("%s: %s, but %s", into, reason, err)
    ran = Path(_linked(into, CURRENT) or "").stem
    proved = _lines(log)[:1] == [f"{PROVED}{ran}"]
    line = f"{now:.3f} {os.getpid()}"
    if not proved:
        _write_line(log, line)

    def well() -> None:
        if not proved and _linked(into, CURRENT) == f"{ran}{SUFFIX}":
            with _warned(log):
                write_text(log, f"{PROVED}{ran}\n")

    good = threading.Timer(WELL, well)
    good.daemon = True
    good.start()
    try:
        yield ran
    except BaseException as err:
        if not proved and isinstance(err, EdgeudaError) and not isinstance(err, ModelError):
            with _warned(log):
                write_text(log, "".join(f"{one}\n" for one in _lines(log) if one != line))
        raise
    else:
        well()
    finally:
        good.cancel()


def note_alarms(model: Path, ran: str | None, watch: WatchRecord) -> Event | None:
    """Count the alarms of a drive, and fall back if they are more than the network before gave.

    Source: Przyborowski and Wilenski, "Homogeneity of Results in Testing Samples from Poisson
    Series", Biometrika 31, 1940.

    The test is made after each drive, so the chance is divided among them: the n-th gets
    6 / (pi n)^2 of it, which add up to all of it. Only what was watched with the same settings is
    compared.

    Args:
        model: What was driven with.
        ran: As `attempt` gave it.
        watch: What its watch saw.

    Returns:
        What happened; None if nothing did.
    """
    into = folder_of(model)
    if into is None or ran is None or not watch.tested:
        return None
    try:
        with _patiently(into):
            reason = _counted(into, ran, watch)
        if reason is None:
            return None
        logger.warning("%s: falls back to the network before: %s", into, reason)
        return fall_back(into, reason)
    except (OSError, EdgeudaError) as err:
        logger.warning("%s: the alarms of this drive are not counted (%s)", into, err)
        return None


def _counted(into: Path, ran: str, watch: WatchRecord) -> str | None:
    """Add a drive; returns why its network is to be left, None where it is not."""
    state = _history(into)
    known = {(one.sha256, one.per_hour, one.window): one for one in state.watched}
    key = ran, watch.per_hour, watch.window
    before = known.get(key, Watched(*key))
    now = replace(
        before,
        hours=before.hours + watch.tested * watch.window / 2 / 3600,  # windows overlap by half
        alarms=before.alarms + len(watch.alarms),
        drives=before.drives + 1,
    )
    known[key] = now
    replace(state, watched=tuple(known.values())).write(into / Installation.FILE)
    current, previous = _linked(into, CURRENT), _linked(into, PREVIOUS)
    old = known.get((Path(previous or "").stem, watch.per_hour, watch.window))
    if old is None or previous == current or current != f"{ran}{SUFFIX}":
        return None
    chance = as_many(now.alarms, now.hours, old.alarms, old.hours)
    if chance >= SIGNIFICANT * 6 / (math.pi * now.drives) ** 2:
        return None
    return (
        f"{now.alarms} alarms in {now.hours:.2f} h, {old.alarms} in {old.hours:.2f} h before "
        f"(chance {chance:.2g})"
    )


def as_many(new: int, new_hours: float, old: int, old_hours: float) -> float:
    """Return the chance of ``new`` alarms or more, if both networks give them at one rate.

    Args:
        new: Alarms of the new network.
        new_hours: In so many hours, above 0.
        old: Those of the old one.
        old_hours: Likewise.
    """
    total, share = new + old, new_hours / (new_hours + old_hours)
    return math.fsum(
        math.exp(
            math.lgamma(total + 1) - math.lgamma(n + 1) - math.lgamma(total - n + 1)
            + n * math.log(share) + (total - n) * math.log1p(-share)
        )
        for n in range(new, total + 1)
    )  # fmt: skip


def _checked(
    slot: Path,
    event: Event,
    device: DeviceName,
    threads: int | None,
    public_key: Path | None,
    demands: Demands,
) -> Event:
    """Return the event with what was measured.

    Raises:
        BundleError: If the bundle does not keep what is demanded.
    """
    with model_file(slot, device, public_key=public_key) as file:
        bundle = open_bundle(slot)
        name = choose_member(bundle, device).name
        # The first builds the engines, if the device has any, and the next processes find them.
        opened = partial(
            open_runner, file, device=device, trusted=True,
            engines=engines_of(slot, device, public_key),
        )  # fmt: skip
        # With one thread, as when it was packed.
        with opened(1 if device == "cpu" else threads) as runner:
            acceptance = _accepted(runner, bundle, name, device, demands)
        with opened(threads) as runner:
            milliseconds = _timed(runner)
    if demands.budget_ms is not None and milliseconds["95"] > demands.budget_ms:
        msg = (
            f"{event.bundle}: takes {milliseconds['95']:.1f} ms (95th percentile of {TIMED} "
            f"frames), and the budget is {demands.budget_ms:g} ms"
        )
        raise BundleError(msg)
    return _descended(replace(event, acceptance=acceptance, milliseconds=milliseconds), bundle)


def _descended(event: Event, bundle: Bundle) -> Event:
    """Return an event that says where its network comes from, if the bundle does."""
    lineage = bundle.manifest.lineage
    if lineage is None:
        return event
    return replace(event, parent=lineage.parent, driven=lineage.driven)


def _say_parent(event: Event, current: str | None) -> None:
    """Warn of a network that was made from another one than the vehicle has."""
    if event.parent is None or current is None or Path(current).stem == event.parent:
        return
    logger.warning(
        "%s: descends from %s, and %s runs here: what that has learned, this one may not know",
        event.bundle, event.parent[:12], Path(current).stem[:12],
    )  # fmt: skip


def _accepted(
    runner: Runner, bundle: Bundle, model: str, device: DeviceName, demands: Demands
) -> Acceptance:
    expected = [m for m in bundle.of("acceptance") if m.about.get("model") == Path(model).name]
    if not expected:
        if demands.frames:
            msg = f"{bundle.path}: holds no acceptance frames of {model}, and they are demanded"
            raise BundleError(msg)
        logger.warning("%s: holds no acceptance frames of %s: not tested", bundle.path.name, model)
        return Acceptance(0, None, False)
    here = identity()
    exact = device == "cpu" and all(
        member.about.get(key) == here[key] for member in expected for key in ROUNDING
    )
    least = 1.0
    for _, image, wanted in accepted_frames(bundle, expected):
        least = min(least, float((runner(image[None])[0] == wanted).mean()))
    if least < (1.0 if exact else demands.agreement):
        wanted_share = "all" if exact else f"{100 * demands.agreement:g} %"
        msg = (
            f"{bundle.path}: on a frame {100 * least:.3f} % of the pixels are as when it was "
            f"packed, and {wanted_share} have to be"
        )
        raise BundleError(msg)
    return Acceptance(len(expected), least, exact)


def accepted_frames(
    bundle: Bundle, expected: Iterable[Member]
) -> Iterator[tuple[str, Image, LabelMap]]:
    """Yield acceptance frames by name, ``[H, W, 3]`` uint8 RGB, and what each was called.

    Args:
        bundle: That holds them.
        expected: Its label maps, ``[H, W]`` uint8 class ids each.

    Raises:
        BundleError: If one is no label map of its frame.
    """
    for member in expected:
        name = str(member.about.get("frame"))
        frame = f"{FOLDERS['acceptance']}/{name}"
        image = decode_image(np.frombuffer(bundle.read(frame), np.uint8))
        content = np.frombuffer(bundle.read(member.name), np.uint8)
        wanted = decode_label(Path(member.name), content)
        if wanted is None or wanted.shape != image.shape[:2]:
            msg = f"{bundle.path}: {member.name} is no label map of {frame}"
            raise BundleError(msg)
        yield name, image, np.asarray(wanted, np.uint8)


def _timed(runner: Runner) -> dict[str, float]:
    size = runner.spec.preprocessing
    image = np.random.default_rng(0).integers(
        0, 256, (1, size.height, size.width, 3), np.uint8
    )  # an even image would be faster for some
    taken = []
    for _ in range(WARM + TIMED):
        begin = time.perf_counter()
        runner(image)
        taken.append(1e3 * (time.perf_counter() - begin))
    return {str(one): round(float(np.percentile(taken[WARM:], one)), 3) for one in PERCENTILES}


def _event(action: Action, checksum: str, reason: str, known: Installation) -> Event:
    named = [one.bundle for one in known.history if one.sha256 == checksum]
    return Event(now_utc(), action, named[-1] if named else "", checksum, reason)


def _history(into: Path) -> Installation:
    """Return the history, a new one where it is damaged: it must not keep a network from going."""
    try:
        return read(into)
    except DataError as err:
        path = into / Installation.FILE
        logger.warning("%s: the history begins anew; the damaged one is %s.damaged", err, path.name)
        path.replace(path.with_name(f"{path.name}.damaged"))
        return Installation()


def _note(into: Path, event: Event) -> Event:
    state = _history(into)
    there = {path.stem for path in into.glob(f"*{SUFFIX}")}
    Installation(
        (*state.history, event)[-HISTORY:], tuple(w for w in state.watched if w.sha256 in there)
    ).write(into / Installation.FILE)
    return event


def _linked(into: Path, name: str) -> str | None:
    """Return the name of the bundle that a link leads to; None without one."""
    path = into / name
    return str(path.readlink()) if path.is_symlink() and path.exists() else None


def _link(into: Path, name: str, target: str) -> None:
    """Let a link lead to another bundle, at once."""
    fresh = into / f".{Path(name).stem}.tmp{SUFFIX}"
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(target)
    except OSError as err:
        msg = f"{into}: expected a file system with links, found one without ({err.strerror})"
        raise OutputError(msg) from err
    fresh.replace(into / name)
    folder = os.open(into, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _tidy(into: Path) -> None:
    """Remove networks that no link leads to, and what a killed process was writing."""
    kept = {_linked(into, CURRENT), _linked(into, PREVIOUS)}
    for path in list(into.iterdir()):
        if is_temporary(path) or (SLOT.fullmatch(path.name) and path.name not in kept):
            path.unlink()
    _tidy_engines(into)


def _tidy_engines(into: Path) -> None:
    """Remove the engines of networks that are not there any more."""
    for folder in (into / FOLDER).glob("*"):
        if not (into / f"{folder.name[:64]}{SUFFIX}").exists():
            shutil.rmtree(folder)


def _checksum(bundle: Path) -> str:
    try:
        return sha256(bundle)
    except OSError as err:
        msg = f"{bundle}: expected a bundle, found no file that can be read ({err.strerror})"
        raise BundleError(msg) from err


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def _starts(into: Path) -> list[tuple[float, int]]:
    """Return time and process of the starts that have not ended well; half a line is none."""
    found = (re.fullmatch(r"(\d+\.\d{3}) (\d+)", line) for line in _lines(into / STARTS))
    return [(float(one[1]), int(one[2])) for one in found if one is not None]


def _gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        return False
    return process == os.getpid()


def _write_line(log: Path, line: str) -> None:
    """Add a line that is on the disk when this returns."""
    with _warned(log), log.open("a") as stream:
        stream.write(f"{line}\n")
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _warned(path: Path) -> Iterator[None]:
    """Go on where a file cannot be written: a vehicle drives on."""
    try:
        yield
    except (OSError, OutputError, OutputExistsError, BundleError) as err:
        logger.warning("%s: not written, what happened is not counted (%s)", path, err)


@contextmanager
def _patiently(into: Path) -> Iterator[None]:
    """Wait for another process to be done with a folder, as long as `PATIENCE`."""
    until = time.monotonic() + PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(alone(into))
                break
            except OutputExistsError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield
