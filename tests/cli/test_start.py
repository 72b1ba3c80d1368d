"""What the command line loads before it does anything, and before it says what is wrong."""

import os
import re
import subprocess
import sys

import pytest

from cli.app import VERBS
from places import ROOT

HEAVY = ("torch", "onnxruntime", "onnx", "cv2", "matplotlib")
RUN = """
import sys
sys.argv = ["edgeuda", *sys.argv[1:]]
from cli import main
try:
    main()
except SystemExit as stop:
    print(f"code {stop.code}", *(n for n in HEAVY if n in sys.modules), file=sys.stderr)
""".replace("HEAVY", repr(HEAVY))
HELP = """
import sys
from cli.app import VERBS, app
for verbs in VERBS.values():
    for verb in verbs:
        try:
            app([verb, "--help"])
        except SystemExit as stop:
            assert stop.code == 0
        found = [name for name in HEAVY if name in sys.modules]
        assert not found, (verb, found)
""".replace("HEAVY", repr(HEAVY))


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
        check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_help_of_no_verb_loads_a_library():
    done = python(HELP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == sum(map(len, VERBS.values()))


@pytest.mark.parametrize("verb", ["recipes", "labels"])
def test_lists_need_no_library(verb):
    assert python(RUN, verb).stderr.splitlines()[-1] == "code 0"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("train --source FRAMES --recipe nosuch", 4, "Unknown recipe 'nosuch'"),
        ("train --source NOWHERE", 3, "NOWHERE: expected a folder of images"),
        ("adapt --model NOWHERE --source FRAMES --target FRAMES", 5, "NOWHERE: expected a model"),
        ("adapt --model MODEL --source FRAMES --target NOWHERE", 3, "NOWHERE: expected a folder"),
        ("compare --source FRAMES --target NOWHERE --data FRAMES", 3, "NOWHERE: expected a folder"),
        ("pseudo-label --model NOWHERE --target FRAMES", 5, "NOWHERE: expected a model file"),
        ("evaluate --model NOWHERE --data FRAMES", 5, "NOWHERE: expected a model file"),
        ("export --model NOWHERE --target FRAMES", 5, "NOWHERE: expected a model file"),
        ("export --model MODEL --target NOWHERE.txt", 3, "NOWHERE.txt: expected a readable list"),
        ("tradeoff --model MODEL --model NOWHERE --target FRAMES", 5, "NOWHERE: expected a model"),
        ("update --bundle B --model MODEL --source FRAMES --old FRAMES --new NOWHERE", 3,
         "NOWHERE: expected a folder"),
        ("run --model NOWHERE.onnx --target FRAMES", 5, "NOWHERE.onnx: expected an ONNX model"),
        ("predict --model NOWHERE.onnx --target FRAMES", 5, "NOWHERE.onnx: expected an ONNX model"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_before_torch_is_loaded(words, code, said, tmp_path):
    (tmp_path / "FRAMES").mkdir()
    (tmp_path / "MODEL").touch()
    verb, *rest = (str(tmp_path / x) if x.startswith(("F", "M", "N")) else x for x in words.split())
    done = python(RUN, verb, *rest, "--out", tmp_path / "out")
    text = re.sub(r"\s+", " ", done.stderr)
    assert said in text
    last = done.stderr.splitlines()[-1].split()
    assert last[:2] == ["code", str(code)]
    assert "torch" not in last
