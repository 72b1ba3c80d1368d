"""The command line: every verb on small rendered data, and one clear message for bad input."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import typer

from cli import shadowing
from cli.app import app
from edgeuda.data.images import read_image, read_label, write_label
from edgeuda.labels import SPACES
from edgeuda.street import write_dataset
from foreign_models import CoinCheung
from places import ROOT
from tiny_models import exported

TINY = [
    item
    for setting in (
        "model.width=0.125", "model.input=[64, 128]", "geometry.crop=[64, 128]",
        "source.steps=4", "source.batch=2",
        "adabn.batches=2", "adabn.batch=2", "stage1.steps=2", "stage1.batch=2", "stage2.steps=2",
        "stage1.lr=1e-4", "stage2.lr=1e-4",
        "stage2.batch=2",
    )
    for item in ("--set", setting)
]  # fmt: skip


def edgeuda(*arguments, code=0, cwd=ROOT, env=None):
    """Run the command line in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", "from cli import main; main()", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(env or {})},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def message(text):
    """Undo the terminal's line breaks."""
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1)):
        write_dataset(root / role, domain, 6, seed, 64, 128, SPACES["cityscapes-19"])
    return root


def readme_commands():
    """Every command of the README and of the page on verbs, in order."""
    pages = (ROOT / "README.md", ROOT / "docs/verbs.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("edgeuda ")]


@pytest.fixture(scope="module")
def work(data, tmp_path_factory):
    """A folder in which the commands of the README have run, on little data and few steps."""
    out = tmp_path_factory.mktemp("work")
    folders = {
        "SIMULATOR": data / "source",
        "FOOTAGE": data / "target",
        "LABELLED": data / "target",
    }
    little = {
        "train": TINY,
        "adapt": TINY,
        "compare": [*TINY, "--set", "entropy.steps=2", "--set", "entropy.batch=2"],
        "bench": ["--samples", "36"],
        "tradeoff": ["--samples", "33"],
        # After two steps of training classes lie so close that rounding moves most pixels.
        "calibrate": ["--min-agreement", "0", "--min-class-agreement", "0"],
        "half": ["--min-agreement", "50"],
        "update": ["--pack-anyway"],  # INT8 of it is as bad
    }
    torch.save(CoinCheung(19).state_dict(), out / "model_final_v1_city.pth")
    (out / "LICENCE").write_text("For tests.")
    writer = cv2.VideoWriter(str(out / "DRIVE.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 32))
    for value in (0, 50, 100):
        writer.write(np.full((32, 64, 3), value, np.uint8))
    writer.release()
    printed = []
    for verb, *rest in readme_commands():
        words = [folders.get(word, word) for word in rest]
        printed.append((verb, edgeuda(verb, *words, *little.get(verb, []), cwd=out)))
    (out / "printed.json").write_text(json.dumps(printed))
    return out


def test_what_int8_changes_too_much_is_refused_and_shown(work, data):
    """The model is written all the same: the user may look at it, and decide otherwise."""
    arguments = ("calibrate", "--model", "adapted.onnx", "--target", data / "target")
    text = message(
        edgeuda(
            *arguments, "--out", "refused.onnx", "--page", "refused.html",
            "--min-agreement", "99.9", "--max-drop", "100", "--data", data / "target",
            "--choose", "classes", "--frames", "4",
            code=9, cwd=work,
        )
    )  # fmt: skip
    assert "verdict: not accepted" in text
    assert re.search(r"Error: refused.onnx: not accepted. \d+\.\d\d% of the pixels keep", text)
    assert "mIoU on 6 labelled images: FP32" in text
    assert (work / "refused.onnx").exists()
    page = (work / "refused.html").read_text()
    for part in ("INT8 is not accepted", "Sensitivity", "Histograms", "Agreement by part"):
        assert part in page
    record = json.loads((work / "refused.json").read_text())
    assert not record["acceptance"]["accepted"]
    assert len(record["frames"]) == 4
    assert record["assignment"]["measure"] == "mIoU"
    edgeuda(
        *arguments, "--out", "again.onnx", "--ranges", "refused.onnx.ranges.npz", "--on",
        data / "source", code=3, cwd=work,
    )  # fmt: skip


def test_statistics_of_new_footage_without_torch(work, data, tmp_path):
    out = tmp_path / "int8.onnx"
    text = edgeuda(
        "calibrate", "--model", "adapted.onnx", "--target", data / "target", "--out", out,
        "--adapt-bn", "--equalize", "--correct-biases", "--min-agreement", "0",
        "--min-class-agreement", "0", cwd=work,
    )  # fmt: skip
    assert "int8.fp32.onnx" in text
    record = json.loads(Path(f"{out}.calibration.json").read_text())
    assert record["model"] == "int8.fp32.onnx"
    assert record["transforms"] == [
        "batch-norm statistics of the frames",
        "weights equalized across layers",
        "biases corrected",
    ]


def test_a_bundle_is_what_was_packed(work):
    (out,) = (work / "unpacked").glob("models/adapted-int8.onnx")
    assert out.read_bytes() == (work / "adapted-int8.onnx").read_bytes()
    assert {p.name for p in (work / "unpacked").rglob("*.*")} >= {
        "adapted-int8.onnx.calibration.json", "adapted-int8.onnx.ranges.npz", "int8.json",
    }  # fmt: skip
    changed = work / "changed.edgeuda"
    content = bytearray((work / "vehicle.edgeuda").read_bytes())
    content[len(content) // 2] ^= 255
    changed.write_bytes(content)
    assert "Do not use it" in message(edgeuda("verify", changed, code=11))
    record = json.loads((work / "diff.json").read_text())
    assert record["schema"] == "edgeuda.diff/1"
    inside = work / "vehicle.edgeuda" / "models" / "adapted.onnx"
    arguments = ("--target", work / "frames", "--out", work / "same.json")
    text = edgeuda("diff", work / "adapted.onnx", inside, *arguments)
    assert message(text).startswith("100.000% of the pixels")


def test_a_vehicle_needs_no_torch(work, data, tmp_path):
    """Every verb of a vehicle runs with torch and its companions out of reach."""
    blocked = ("torch", "kornia", "lightning_fabric", "safetensors", "onnxscript")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked}:\n"
        "            raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    model, frames = work / "adapted-int8.onnx", data / "target"
    for verb, *rest in (
        ("doctor", "--need", "run on the CPU"),
        ("verify", work / "vehicle.edgeuda"),
        ("inspect", work / "vehicle.edgeuda"),
        ("predict", "--model", model, "--target", frames, "--out", tmp_path / "p"),
        ("bench", "--model", model, "--target", frames, "--samples", "33", "--out",
         tmp_path / "b.json"),
        ("evaluate", "--model", model, "--data", frames, "--out", tmp_path / "e.json"),
        ("data", "select", "--model", model, "--target", frames, "--count", "2", "--out",
         tmp_path / "selected.txt"),
        ("report", tmp_path / "b.json", tmp_path / "e.json", "--out", tmp_path / "r.html"),
        ("calibrate", "--model", work / "adapted.onnx", "--target", frames, "--out",
         tmp_path / "i.onnx", "--adapt-bn", "--min-agreement", "0", "--min-class-agreement", "0"),
    ):  # fmt: skip
        edgeuda(verb, *rest, env=env)
    assert "Package 'torch' is not installed" in message(
        edgeuda("export", "--model", work / "adapted", "--target", frames, "--out",
                tmp_path / "x.onnx", env=env, code=7)
    )  # fmt: skip


def test_the_next_bundle_says_where_it_comes_from(work, data):
    text = dict(json.loads((work / "printed.json").read_text()))["update"]
    for said in ("adapting to new frames beside old ones", "Its bundle was written all the same"):
        assert said in text
    assert "next: edgeuda install next/next.edgeuda --into FOLDER" in text
    shown = message(edgeuda("inspect", "next/next.edgeuda", cwd=work))
    assert re.search(r"adapted to \d+ new frames? beside 6 old frames; old ones were 50 %", shown)
    assert "before it: bundle " in shown
    again = (
        "update", "--bundle", "vehicle.edgeuda", "--model", "adapted", "--source", data / "source",
        "--old", data / "target", "--new", "frames", "--out", "next",
    )  # fmt: skip
    assert "exists already" in message(edgeuda(*again, code=6, cwd=work))
    assert "Name the run that the bundle was exported from" in message(
        edgeuda(*("run" if word == "adapted" else word for word in again[:-1]), "other", code=11,
                cwd=work)
    )  # fmt: skip
    assert not (work / "other").exists()


def test_other_networks_do_not_go_into_one_bundle(work, tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(exported("labels"))
    text = edgeuda(
        "bundle", "--model", work / "adapted.onnx", "--model", other, "--out",
        tmp_path / "b.edgeuda", code=11,
    )  # fmt: skip
    assert "is another network than" in message(text)


def test_the_doctor_answers_scripts(tmp_path):
    out = tmp_path / "doctor.json"
    edgeuda("doctor", "--need", "run on the CPU", "--out", out)
    record = json.loads(out.read_text())
    assert record["schema"] == "edgeuda.doctor/1"
    assert record["lacks"]["train and adapt"] == []
    assert "expected one of" in message(edgeuda("doctor", "--need", "fly", code=4))


def test_the_pages_show_every_verb_but_demo():
    verbs = {verb for verb, *_ in readme_commands()}
    assert verbs == {"train", "adapt", "evaluate", "export", "half", "calibrate", "bench",
                     "tradeoff", "run", "predict", "report", "recipes", "compare",
                     "pseudo-label", "labels",
                     "import", "data", "diff", "bundle", "inspect", "verify", "doctor",
                     "build", "update"}  # fmt: skip


def test_every_verb_says_what_it_wrote_and_what_comes_next(work):
    following = {"train": "adapt", "adapt": "export", "export": "calibrate", "calibrate": "bench",
                 "bench": "report", "tradeoff": "report", "predict": "report", "evaluate": "report",
                 "pseudo-label": "train", "import": "adapt"}  # fmt: skip
    for verb, text in json.loads((work / "printed.json").read_text()):
        written = re.findall(r"^wrote (\S+)$", text, re.MULTILINE)
        assert written or verb in ("recipes", "labels", "inspect", "doctor")
        assert all((work / path).exists() for path in written)
        if verb in following:
            assert f"next: edgeuda {following[verb]} " in text
        for words in hints(text):
            accepted(words)


def hints(text):
    """The commands that a verb printed as what comes next."""
    return [shlex.split(x) for x in re.findall(r"^next: edgeuda (.*)$", text, re.MULTILINE)]


@pytest.mark.slow
def test_every_hint_of_the_readme_runs_as_it_was_printed(work, data, tmp_path):
    """Words in capitals are what the user has; where the result goes is asked for here, too."""
    has = {"FRAMES": data / "target", "SOURCE": data / "source", "PSEUDO": data / "target"}
    few = {
        "adapt": [x for s in TINY[1::2] if not s.startswith("model.") for x in ("--set", s)],
        "train": TINY,
        "bench": ["--samples", "33"],
        "calibrate": ["--min-agreement", "0", "--min-class-agreement", "0"],
    }
    ran = set()
    for number, (verb, text) in enumerate(json.loads((work / "printed.json").read_text())):
        for follows, *rest in hints(text):
            if (verb, follows) in ran:
                continue
            ran.add((verb, follows))
            words = [has.get(word, word) for word in rest]
            size = []  # of the network given, which the recipe must have too
            if "--model" in words and "RUN" in words:
                words[words.index("RUN")] = "run"
                size = ["--set", "model.input=[64, 128]"]
            if "--out" in words:
                at = words.index("--out") + 1
                words[at] = tmp_path / f"{number}" / Path(words[at]).name
            given = few.get(follows, []) if "--set" not in words else []
            edgeuda(follows, *words, *given, *size, cwd=work)
    assert {follows for _, follows in ran} >= {
        "adapt", "export", "calibrate", "bench", "report", "verify", "train"
    }  # fmt: skip


def accepted(words):
    """Parse a command as the command line would; what it does not take is an error."""
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context("edgeuda", rest)


def test_records_have_schemas_and_agree(work):
    before, int8, bench = (
        json.loads((work / "results" / name).read_text())
        for name in ("source-only.json", "int8.json", "bench.json")
    )
    assert before["schema"] == int8["schema"] == "edgeuda.evaluation/1"
    assert before["name"] == "source-only"
    assert (before["model"]["kind"], int8["model"]["kind"]) == ("checkpoint", "onnx")
    assert int8["model"]["precision"] == "int8"
    assert before["data"]["labels_sha256"] == int8["data"]["labels_sha256"]
    assert [model["precision"] for model in bench["models"]] == ["fp32", "int8"]
    assert bench["models"][1]["sha256"] == int8["model"]["sha256"]
    assert np.array(int8["confusion"]).sum() > 0


def test_recipes_tell_what_they_need_and_what_was_published(work):
    printed = dict(json.loads((work / "printed.json").read_text()))
    text = message(printed["recipes"])
    assert "52.27 mIoU, 100 labelled images of Rome" in text
    assert "needs: SYNTHIA-RAND-CITYSCAPES" in text
    resolved = edgeuda("recipes", "cityscapes-to-rio")
    assert "target_weight = 0.08" in resolved  # what it extends is in it
    assert "extends" not in resolved
    assert "expected a .toml file or one of" in message(edgeuda("recipes", "best", code=4))


def test_import_says_what_matched_and_adapts(work, data, tmp_path):
    text = message(dict(json.loads((work / "printed.json").read_text()))["import"])
    assert "CoinCheung/BiSeNet V1, as bisenet" in text
    assert "input: mean 0.3257 0.3690 0.3223, std 0.2112 0.2148 0.2115" in text
    assert "left out: none" in text
    theirs = tmp_path / "theirs.safetensors"
    edgeuda("import", "--weights", work / "model_final_v1_city.pth", "--out", theirs, "--input",
            "64x128")  # fmt: skip
    edgeuda("adapt", "--model", theirs, "--source", data / "source", "--target", data / "target",
            "--out", tmp_path / "adapted", "--recipe", "small", *TINY, "--set",
            'stages=["adabn"]')  # fmt: skip
    assert "0.3257" in (tmp_path / "adapted/recipe.toml").read_text()
    refused = edgeuda("import", "--weights", work / "report.html", "--out", work / "x.safetensors",
                      code=5)  # fmt: skip
    assert "report.html" in refused
    bad_size = "--weights", work / "a.pth", "--out", work / "x.safetensors", "--input", "big"
    assert "expected HEIGHTxWIDTH" in edgeuda("import", *bad_size, code=4)


def test_frames_of_a_video_are_extracted_split_and_segmented(work, data, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10,
                             (128, 64))  # fmt: skip
    for index in (0, 1, 1, 2, 3):
        image = read_image(sorted((data / "target/images").iterdir())[index])
        writer.write(np.ascontiguousarray(image[:, :, ::-1]))
    writer.release()
    video, out = tmp_path / "drive.avi", tmp_path / "frames"
    text = message(edgeuda("data", "frames", "--footage", video, "--out", out, "--crop",
                           "0,0,128,60"))  # fmt: skip
    assert "5 frames: kept 4, left out 1 near-duplicates" in text
    assert read_image(sorted((out / "images").iterdir())[0]).shape == (60, 128, 3)
    assert "exists" in edgeuda("data", "frames", "--footage", video, "--out", out, code=6)
    text = adapt(
        data, work, tmp_path / "a", code=0, target=video
    )  # reads in any order: from the cache
    assert "its frames are written to" in text
    edgeuda("predict", "--model", work / "adapted.onnx", "--target", video, "--out",
            tmp_path / "p", "--frames", 3)  # fmt: skip
    record = json.loads((tmp_path / "p/predictions.json").read_text())
    assert [entry["frame"].split("/")[0] for entry in record["frames"]] == ["frames"] * 3
    assert read_label(tmp_path / "p" / record["frames"][2]["labels"]).shape == (64, 128)
    edgeuda("report", tmp_path / "p/predictions.json", "--out", tmp_path / "r.html")


def test_data_check_exits_with_an_error_if_told_to(data, tmp_path):
    folders = "--source", data / "source", "--target", data / "target", "--test", data / "target"
    text = message(edgeuda("data", "check", *folders, "--out", tmp_path / "c.html"))
    assert "6 images of test are also in target, 6 of them byte by byte" in text
    assert "error" not in text
    assert "distance of source and target in brightness and colour" in text
    folders = "--source", data / "source", "--test", data / "source"
    text = message(edgeuda("data", "check", *folders, "--out", tmp_path / "d.html", "--strict",
                           code=3))  # fmt: skip
    assert "1 errors in the data" in text
    assert (tmp_path / "d.html").exists()
    assert "at least one of" in message(edgeuda("data", "check", "--out", tmp_path / "e.html",
                                                code=4))  # fmt: skip


def test_labels_go_out_and_come_back_by_what_was_printed(work, data, tmp_path):
    """The frames that were chosen, in their order, and no others; classes are mapped as said."""
    chosen = (work / "selected.txt").read_text().split()
    record = json.loads((work / "selected.json").read_text())
    assert [frame["frame"] for frame in record["ranked"]] == chosen
    assert len(set(chosen)) == 3
    labelled = work / "corrected"
    assert {path.name for path in (labelled / "images").iterdir()} == set(chosen)
    for name in chosen:
        before = read_label(work / "pseudo/labels" / name)
        assert np.array_equal(read_label(labelled / "labels" / name), before)
    text = edgeuda(
        "data", "import-labels", "--labels", work / "to-label", "--target", data / "target",
        "--out", tmp_path / "out", "--label-space", "camvid-11", code=3,
    )  # fmt: skip
    assert "Say with --map-class what it becomes" in message(text)
    text = edgeuda(
        "data", "import-labels", "--labels", work / "to-label", "--target", data / "target",
        "--out", tmp_path / "out", "--map-class", "road", code=4,
    )  # fmt: skip
    assert "--map-class: expected THEIRS=OURS" in message(text)
    edgeuda(
        "data", "import-labels", "--labels", work / "to-label", "--target", data / "target",
        "--out", tmp_path / "out", "--map-class", "road=", "--map-class", "sky=car",
    )  # fmt: skip
    whole = [SPACES["cityscapes-19"].classes.index(name) for name in ("road", "sky", "car")]
    found = np.stack([read_label(path) for path in sorted((tmp_path / "out/labels").iterdir())])
    assert not np.isin(found, whole[:2]).any()
    text = edgeuda(
        "data", "select", "--model", work / "adapted.onnx", "--target", data / "target",
        "--count", "7", "--out", tmp_path / "more.txt", code=4,
    )  # fmt: skip
    assert "--count: expected from 1 to 6 frames" in message(text)


def test_rendered_data_are_split_into_lists_that_train(tmp_path):
    edgeuda("data", "render", "--out", tmp_path / "d", "--count", 6, "--size", "32x64",
            "--label-space", "camvid-11")  # fmt: skip
    text = edgeuda("data", "split", "--data", tmp_path / "d", "--out", tmp_path / "s", "--gap", 1,
                   "--shares", "3,1,1")  # fmt: skip
    assert "1 sequences, cut into parts with 1 images between; 2 images left out" in text
    edgeuda("train", "--source", tmp_path / "s/train.csv", "--label-space", "camvid-11", "--recipe",
            "small", "--out", tmp_path / "run", *TINY)  # fmt: skip
    assert "expected HEIGHTxWIDTH" in edgeuda("data", "render", "--out", tmp_path / "x", "--size",
                                              "big", code=4)  # fmt: skip


def test_evaluation_as_papers_do_it(work, data, tmp_path):
    out = tmp_path / "e.json"
    edgeuda("evaluate", "--model", work / "run", "--data", data / "target", "--out", out,
            "--scales", "0.5,1", "--flip", "--boundary", 0.01, "--csv",
            "--name", "source")  # fmt: skip
    record = json.loads(out.read_text())
    assert record["name"] == "source (scales 0.5 1, flip)"
    assert record["protocol"] == "scales 0.5 1, flip"
    assert [(found["scale"], found["frames"]) for found in record["passes"]] == [(0.5, 6), (1, 6)]
    assert 0 <= record["boundary"]["miou"] <= 1
    classes, images = (
        (tmp_path / f"e.{what}.csv").read_text().splitlines() for what in ("classes", "images")
    )
    assert classes[0] == "class,pixels,predicted,accuracy,iou,boundary_iou"
    assert len(classes) == 20
    assert len(images) == 7
    pixels = sum(int(line.split(",")[1]) for line in images[1:])
    assert pixels == sum(map(sum, record["confusion"]))
    slid = tmp_path / "slid.json"
    edgeuda("evaluate", "--model", work / "run", "--data", data / "target", "--out", slid,
            "--window", "--window-size", "32x64")  # fmt: skip
    slid = json.loads(slid.read_text())
    assert slid["protocol"] == "sliding window 32x64"
    assert slid["passes"][0]["window"] == [32, 64]
    assert slid["passes"][0]["seen"] == slid["passes"][0]["frame"]
    text = edgeuda("evaluate", "--model", work / "run", "--data", data / "target", "--out",
                   tmp_path / "f.json", "--window", "--window-size", "32", code=4)  # fmt: skip
    assert "--window-size: expected HEIGHTxWIDTH" in text
    text = edgeuda("evaluate", "--model", work / "adapted.onnx", "--data", data / "target", "--out",
                   tmp_path / "f.json", "--flip", code=4)  # fmt: skip
    assert "need the checkpoint" in text


def test_labels_show_spaces_and_refuse_what_does_not_map():
    listed = edgeuda("labels")
    assert "carla-0.9.14" in listed
    assert "maps to: cityscapes-19, camvid-11, carla-3" in listed
    shown = edgeuda("labels", "carla-0.9", "--to", "cityscapes-19")
    row = next(line for line in shown.splitlines() if "Vehicles" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "9",
        "Vehicles",
        "0 0 142",
        "10",
        "car",
    ]
    spaces = "labels", "cityscapes-13", "--to", "robotcar-9"
    assert "vegetation, rider, bus, motorcycle, bicycle of label space" in edgeuda(*spaces, code=4)
    assert "ignored" in edgeuda(*spaces, "--ignore-unmapped")


def test_a_comparison_leaves_table_record_and_plot(work):
    record = json.loads((work / "comparison" / "comparison.json").read_text())
    assert record["schema"] == "edgeuda.comparison/1"
    names = [method["name"] for method in record["methods"]]
    assert names[0] == "source-only"
    assert {"AdaBN", "TUFL + CIM", "edge"} <= set(names)
    assert "oracle" not in names  # no folder was given for it
    text = (work / "comparison" / "comparison.md").read_text()
    assert all(f"| {name} |" in text for name in names)
    assert (work / "comparison" / "comparison.svg").read_text().startswith("<svg")


def test_predictions_have_the_size_of_their_frames(work):
    index = json.loads((work / "results" / "after" / "predictions.json").read_text())
    assert len(index["frames"]) == 6
    for entry in index["frames"]:
        frame = read_image(work / "results" / "after" / entry["frame"])
        labels = read_label(work / "results" / "after" / entry["labels"])
        assert labels.shape == frame.shape[:2]
        assert labels.max() < 19
        overlay = read_image(
            work / "results" / "after" / entry["labels"].replace("labels/", "overlays/")
        )
        assert overlay.shape == frame.shape


def test_the_report_shows_both_models(work):
    html = (work / "report.html").read_text()
    for name in ("source-only", "adapted FP32", "adapted INT8"):
        assert name in html
    assert (work / "report.md").exists()


def test_a_trade_off_is_decided_on_the_first_page(work):
    record = json.loads((work / "tradeoff" / "tradeoff.json").read_text())
    assert record["budget"]["latency_ms"] == 33
    html = (work / "decision.html").read_text()
    assert f"Take {record['choice']['name']}" in html
    assert [row["precision"] for row in record["variants"]] == ["fp32", "int8"] * 2
    arguments = ("tradeoff", "--target", work / "frames", "--out", work / "other")
    model = ("--model", work / "adapted")
    for extra, words in (
        (("--budget", "soon"), "--budget: expected a duration"),
        (("--name", "a", "--name", "b"), "--name: expected 1 names"),
        (("--size", "wide"), "--size: expected HEIGHTxWIDTH"),
    ):
        assert words in message(edgeuda(*arguments, *model, *extra, code=4))
    assert not (work / "other").exists()


def test_a_rate_has_a_deadline_and_runs_go_side_by_side(work):
    record = json.loads((work / "results" / "rate.json").read_text())
    assert (record["method"]["arrival"], record["method"]["fps"]) == ("frame rate", 30)
    assert record["models"][0]["deadline"]["limit_ms"] == pytest.approx(1000 / 30)
    again = work / "again"
    edgeuda("bench", "--model", work / "adapted-int8.onnx", "--target", work / "frames", "--out",
            again / "bench.json", "--samples", "33", "--deadline", "5ms")  # fmt: skip
    edgeuda("report", work / "results/bench.json", again / "bench.json", "--out", again / "r.html")
    html = (again / "r.html").read_text()
    assert "Machines and dates side by side" in html
    assert "reference" in html
    assert "deadline 5 ms" in html


def test_a_drive_is_segmented_as_it_comes(work):
    record = json.loads((work / "drive" / "run.json").read_text())
    assert record["frames"]["segmented"] == record["frames"]["received"] == 3
    assert record["precision"] == "int8"  # a bundle gives what is best on a CPU
    assert len(list((work / "drive" / "labels").glob("*.png"))) == 3
    video = cv2.VideoCapture(str(work / "drive" / "overlay.mkv"))
    assert [video.read()[0] for _ in range(4)] == [True] * 3 + [False]
    assert video.get(cv2.CAP_PROP_FPS) == 10  # as the recording
    bundle = ("run", "--model", work / "vehicle.edgeuda", "--out", work / "none")
    text = message(edgeuda(*bundle, code=4))
    assert "either --target or --ros2" in text
    assert (
        "camera 99: cannot be opened" in message(edgeuda(*bundle, "--target", "99", code=3)).lower()
    )
    assert "ROS 2 is not available" in message(edgeuda(*bundle, "--ros2", "/image", code=7))
    video = ("--target", work / "DRIVE.avi")
    assert "has no model 'x'" in message(edgeuda(*bundle, *video, "--member", "x", code=11))
    env = {"DISPLAY": "", "WAYLAND_DISPLAY": ""}
    assert "needs a screen" in message(edgeuda(*bundle, *video, "--window", code=10, env=env))
    assert not (work / "none").exists()


def test_help_lists_the_verbs_and_imports_nothing_heavy():
    text = edgeuda("--help")
    for verb in ("train", "adapt", "evaluate", "export", "calibrate", "bench", "report",
                 "predict", "demo", "compare", "recipes"):  # fmt: skip
        assert verb in text
    heavy = "import sys, cli.app; print([m for m in ('torch', 'cv2', 'onnx') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, cwd=ROOT,
                         check=True)  # fmt: skip
    assert run.stdout.strip() == "[]"


def adapt(data, work, out, *extra, code, target=None):
    return message(
        edgeuda("adapt", "--model", work / "run", "--source", data / "source", "--target",
                target or data / "target", "--out", out, "--recipe", "small", *TINY, *extra,
                code=code)
    )  # fmt: skip


def copy_of(folder, to):
    for path in folder.rglob("*.*"):
        place = to / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    return to


def test_label_ids_outside_the_space(data, tmp_path):
    source = copy_of(data / "source", tmp_path / "source")
    label = np.full((64, 128), 30, np.uint8)
    write_label(source / "labels" / "000002.png", label)
    text = edgeuda("train", "--source", source, "--out", tmp_path / "run", "--recipe", "small",
                   *TINY, code=3)  # fmt: skip
    assert re.search(r"000002\.png.*0 to 18.*found \[30\]", message(text))
    assert not (tmp_path / "run").exists()


def test_image_and_label_of_different_size(data, tmp_path):
    source = copy_of(data / "source", tmp_path / "source")
    write_label(source / "labels" / "000004.png", np.zeros((32, 128), np.uint8))
    text = edgeuda("train", "--source", source, "--out", tmp_path / "run", "--recipe", "small",
                   *TINY, code=3)  # fmt: skip
    assert re.search(r"000004\.png.*128x64.*128x32", message(text))
    assert not (tmp_path / "run").exists()


def test_unreadable_target_frames(data, work, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    whole = (data / "target" / "images" / "000000.png").read_bytes()
    for index in range(25):
        (target / f"{index:02}.png").write_bytes(whole)
    (target / "03.png").write_bytes(whole[:500])
    # Copies of one frame have no variance to train on; reading them is what matters here.
    only = ("--set", 'stages=["adabn"]')
    text = adapt(data, work, tmp_path / "out", *only, code=0, target=target)
    assert re.search(r"Skipped.*03\.png.*truncated", text)
    assert "skipped 1 of 25" in text
    (target / "04.png").write_text("text")
    text = adapt(data, work, tmp_path / "other", code=3, target=target)
    assert "2 of 25" in text
    assert not (tmp_path / "other").exists()


def test_an_empty_folder(data, work, tmp_path):
    (tmp_path / "empty").mkdir()
    text = adapt(data, work, tmp_path / "out", code=3, target=tmp_path / "empty")
    assert re.search(r"empty: expected images .* found none", text)


def test_a_checkpoint_of_another_model(data, work, tmp_path):
    text = adapt(data, work, tmp_path / "out", "--set", "model.input=[64,64]", code=5)
    assert "found one for 64x128" in text
    assert not (tmp_path / "out").exists()


def test_a_network_counts_with_its_own_width_and_statistics(data, work, tmp_path):
    text = adapt(data, work, tmp_path / "out", "--set", "model.width=0.25", "--set",
                 'stages=["adabn"]', code=0)  # fmt: skip
    assert "its own width count" in text
    resolved = (tmp_path / "out/recipe.toml").read_text()
    assert "width = 0.125" in resolved


def test_an_unknown_key(data, work, tmp_path):
    text = adapt(data, work, tmp_path / "out", "--set", "stage1.setps=3", code=4)
    assert "unknown key 'stage1.setps'; did you mean 'steps'?" in text


def test_outputs_that_exist_are_left_alone(data, work, tmp_path):
    kept = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    target, fp32 = data / "target", work / "adapted.onnx"
    text = adapt(data, work, work / "adapted", code=6)
    assert re.search(r"adapted: exists already; nothing was overwritten", text)
    for verb in (
        ("export", "--model", work / "adapted", "--target", target, "--out", fp32),
        ("calibrate", "--model", fp32, "--target", target, "--out", work / "adapted-int8.onnx"),
        ("evaluate", "--model", fp32, "--data", target, "--out",
         work / "results" / "int8.json"),
        ("predict", "--model", fp32, "--target", target, "--out", work / "results/after"),
        ("bench", "--model", fp32, "--target", target, "--out", work / "results" / "bench.json"),
        ("run", "--model", fp32, "--target", target, "--out", work / "drive"),
        ("demo", "--out", work),
    ):  # fmt: skip
        assert "exists already" in message(edgeuda(*verb, code=6))
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == kept


def test_a_foreign_onnx_file_and_a_missing_one(data, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing like a model")
    for name in ("x.onnx", "missing.onnx"):
        text = edgeuda("evaluate", "--model", tmp_path / name, "--data", data / "target", "--out",
                       tmp_path / "e.json", code=5)  # fmt: skip
        assert name in text


def test_a_missing_runtime_names_the_extra(work, data, tmp_path):
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import sys\nsys.modules['onnxruntime'] = None\nsys.modules['torch'] = None\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    text = edgeuda("bench", "--model", work / "adapted.onnx", "--target", data / "target", "--out",
                   tmp_path / "b.json", code=7, env=env)  # fmt: skip
    assert "edgeuda[cpu]" in text
    assert "edgeuda[gpu]" in text
    text = edgeuda("train", "--source", data / "source", "--out", tmp_path / "t", code=7, env=env)
    assert "edgeuda[train]" in text


def test_a_shadowing_folder_is_named(tmp_path):
    assert shadowing(ROOT) is None
    package = tmp_path / "engines"
    package.mkdir()
    (package / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cli; sys.path.insert(0, '');" \
        "cli.main()"  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code, "--help"], cwd=tmp_path, check=False,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode != 0
    assert str(package) in run.stderr


def test_pseudo_labels_are_data_for_the_other_verbs(work, data, tmp_path):
    index = json.loads((work / "pseudo" / "pseudo-labels.json").read_text())
    assert index["schema"] == "edgeuda.pseudo-labels/1"
    assert len(index["frames"]) == 6
    edgeuda("evaluate", "--model", work / "run", "--data", work / "pseudo",
            "--out", tmp_path / "agreement.json")  # fmt: skip
    agreement = json.loads((tmp_path / "agreement.json").read_text())
    known = sum(sum(frame["pixels"]) for frame in index["frames"])
    assert np.array(agreement["confusion"]).sum() == known
    listed = sorted((data / "target/images").iterdir())[:2]
    (tmp_path / "frames.txt").write_text("".join(f"{path}\n" for path in listed))
    edgeuda("pseudo-label", "--model", work / "run", "--target", tmp_path / "frames.txt", "--out",
            tmp_path / "listed")  # fmt: skip
    edgeuda("evaluate", "--model", work / "run", "--data", tmp_path / "listed/pairs.csv",
            "--label-space", "cityscapes-19", "--out", tmp_path / "few.json")  # fmt: skip
    assert json.loads((tmp_path / "few.json").read_text())["data"]["images"] == 2


COMPANIONS = [
    item
    for setting in (
        "hiast.steps=1", "hiast.batch=2", "hiast.selection.initial=0.05", "ass.steps=1",
        "ass.batch=2", "hiast.selection.history=0.99",
    )
    for item in ("--set", setting)
]  # fmt: skip


def test_one_method_starts_from_anothers_network(work, data, tmp_path):
    folders = "--source", data / "source", "--target", data / "target", "--recipe", "small"
    text = edgeuda("adapt", "--init", work / "adapted", *folders, *TINY, *COMPANIONS,
                   "--set", 'stages=["hiast"]', "--out", tmp_path / "hiast")  # fmt: skip
    assert f"wrote {tmp_path / 'hiast' / 'model.safetensors'}" in text
    run = json.loads((tmp_path / "hiast" / "run.json").read_text())
    assert run["data"]["init"] == str(work / "adapted")


def test_labelled_target_images_are_asked_for(work, data, tmp_path):
    folders = "--source", data / "source", "--target", data / "target", "--recipe", "small"
    ass = "--set", 'stages=["ass"]', "--target-labels", "2"
    edgeuda("adapt", "--model", work / "run", *folders, *TINY, *COMPANIONS, *ass,
            "--out", tmp_path / "ass")  # fmt: skip
    assert len((tmp_path / "ass/ass/labelled.txt").read_text().split()) == 2
    text = edgeuda("adapt", "--model", work / "run", *folders, *TINY, "--target-labels", "2",
                   "--out", tmp_path / "no", code=4)  # fmt: skip
    assert "has no stage 'ass'" in message(text)
