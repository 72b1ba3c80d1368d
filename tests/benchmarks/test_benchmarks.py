"""The entry of the benchmarks, the envelope of their results, and the page made of them."""

import json
import subprocess
import sys

import pytest

from benchmarks import result
from benchmarks.__main__ import catalogue, main, parser_of
from benchmarks.figures import FIGURES
from benchmarks.page import PAGE, page
from places import ROOT

CATALOGUE = catalogue()


def needs_files(name):
    return any(action.required for action in parser_of(name)._actions)


def test_the_page_is_made_of_the_records():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m benchmarks --page"


def test_every_benchmark_is_listed_with_its_needs_and_has_figures(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name, (about, needs) in CATALOGUE.items():
        assert f"{name}\n    {about}\n    Needs {needs}.\n" in listed
        assert about.endswith(".")
    assert CATALOGUE.keys() == FIGURES.keys()
    assert main(["nothing"]) == 2


def test_the_list_costs_no_heavy_import():
    code = "import benchmarks.__main__ as b, sys; b.main([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("said", "commit", "dirty", "why"),
    [
        ("a" * 40, "a" * 40, False, None),
        ("a" * 40 + "-dirty", "a" * 40, True, None),
        ("not available: git: x", None, None, "not available: git: x"),
    ],
)
def test_an_envelope_says_where_its_result_comes_from(
    monkeypatch, tmp_path, said, commit, dirty, why
):
    monkeypatch.setattr(result, "git_commit", lambda _: said)
    payload = {"schema": "x/1", "value": 1}
    found = result.enveloped("heads", lambda: payload, ["--model", str(tmp_path / "m")], False)
    assert (found["commit"], found["dirty"], found.get("commit_unknown")) == (commit, dirty, why)
    assert found["command"] == "python -m benchmarks heads --model m"
    assert len(found["load_average"]["before"]) == len(found["load_average"]["after"]) == 3
    assert {"cpu", "cpu_flags", "cores_usable"} <= found["machine"].keys()
    assert "numpy" in found["versions"]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(found))
    assert result.payload_of(path, "x/1") == payload
    path.write_text(json.dumps(payload))  # a record from before there were envelopes
    assert result.payload_of(path) == payload
    with pytest.raises(ValueError, match=r"expected a result of schema y/1, found x/1"):
        result.payload_of(path, "y/1")


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_the_short_form_gives_a_result(name, tmp_path):
    pytest.importorskip("torch")
    if needs_files(name):
        pytest.skip("it needs files that are no part of the checkout")
    out = tmp_path / "result.json"
    # In a process of its own: the libraries that are compared do not all bear each other's threads.
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["schema"] == result.SCHEMA
    assert record["benchmark"] == name
    assert record["quick"]
    assert record["result"]["schema"].startswith("edgeuda.")
    assert record["result"].keys().isdisjoint({"machine", "commit", "versions"})
    figures = list(FIGURES[name](record["result"]))
    assert figures
    assert all(figure.shown for figure in figures)
