"""What the verb says of records that are no part of a report."""

from typer.testing import CliRunner

from cli.app import app
from edgeuda.files import write_json
from places import ROOT


def test_what_is_left_out_is_said(tmp_path):
    bench = ROOT / "benchmarks/results/tradeoff-day-to-dusk-bench.json"
    (tmp_path / "bench.json").write_bytes(bench.read_bytes())
    write_json(tmp_path / "other.json", {"schema": "x/1"})
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    assert f"left out: {tmp_path}/other.json: schema 'x/1' is not part of a report" in done.output
