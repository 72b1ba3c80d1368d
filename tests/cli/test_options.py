"""What the command line calls what functions call otherwise, and that its help is complete."""

import ast
import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli import options
from cli.app import app
from edgeuda.records import names
from places import ROOT

LIBRARIES = sorted(
    path for name in ("edgeuda", "engines", "calibration") for path in (ROOT / name).rglob("*.py")
)
NOT_YET = {"edgeuda/data/folders.py", "edgeuda/training/pseudo_labels.py"}


def verbs():
    """Every verb with its name as it is typed."""
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        if inner:
            yield from ((f"{name} {one}", verb) for one, verb in inner.items())
        else:
            yield name, command


VERBS = dict(verbs())
PARAMETERS = [(verb, p) for verb, command in VERBS.items() for p in command.params]
TYPED = {text for _, p in PARAMETERS for text in p.opts}


def texts(path):
    """Strings of a module that are no docstrings, joined where an f-string cuts them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    inner = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else "X" for v in node.values]
            yield "".join(map(str, parts))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in said | inner
        ):
            yield node.value


@pytest.mark.parametrize("path", LIBRARIES, ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_name_parameters_and_not_options(path):
    if str(path.relative_to(ROOT)) in NOT_YET or path.name == "schemas.py":
        pytest.skip("to be done")
    for text in texts(path):
        # A whole command is meant to be pasted, as it is.
        rest = re.sub(r"edgeuda [a-z-]+ .*|^--set .*", "", text, flags=re.DOTALL)
        if " " in text.strip():
            assert not TYPED & set(re.findall(r"--[a-z-]+", rest)), text
        for name in re.findall(r"`([a-z_]+)`", text):
            is_option = f"--{name.replace('_', '-')}" in TYPED
            assert not is_option or name in options.PARAMETERS, text


def test_every_parameter_is_an_option_of_some_verb():
    assert set(options.PARAMETERS.values()) <= TYPED


def test_messages_say_what_is_typed():
    said = "a: exists. Choose another `out`, or `label_space` x, or take `model.input=[512,1024]`"
    assert options.as_options(said) == (
        "a: exists. Choose another --out, or --label-space x, or take --set model.input=[512,1024]"
    )
    assert options.as_options("`edgeuda doctor` and `something_else`") == (
        "`edgeuda doctor` and `something_else`"
    )


def test_a_message_reaches_the_terminal_with_options(tmp_path, monkeypatch, capsys):
    from cli.app import run

    (tmp_path / "out.json").write_text("{}")
    words = ["doctor", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["edgeuda", *words])
    assert run() == 6
    assert "Choose another --out or remove it" in capsys.readouterr().err


def test_an_option_of_before_is_taken_and_said(caplog):
    assert options.now("--runtime", "ort-x86", "--backend", None) == "ort-x86"
    assert options.now("--runtime", None, "--backend", []) is None
    assert not caplog.records
    assert options.now("--runtime", "ort-x86", "--backend", "tensorrt") == "tensorrt"
    assert "--backend is called --runtime now" in caplog.text
    for verb in ("calibrate", "tradeoff"):
        (hidden,) = (p for p in VERBS[verb].params if "--backend" in p.opts)
        assert hidden.hidden


def test_no_list_of_values_is_written_twice():
    known = {
        frozenset(ast.literal_eval(repr(value.__args__)))
        for value in vars(names).values()
        if hasattr(value, "__args__") and all(isinstance(v, str) for v in value.__args__)
    }
    for path in [*LIBRARIES, *(ROOT / "cli").rglob("*.py")]:
        if path.name == "names.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert "Enum" not in ast.unparse(node).split(":")[0], path
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
                values = [v.value for v in ast.walk(node.slice) if isinstance(v, ast.Constant)]
                assert frozenset(values) not in known, (path, values)


@pytest.mark.parametrize(("verb", "option"), PARAMETERS, ids=lambda x: getattr(x, "name", x))
def test_every_option_has_a_sentence_for_help(verb, option):
    text = getattr(option, "help", None)
    if option.name in ("help", "backend"):  # the library's own, and a name of before
        return
    assert text, (verb, option.name)
    assert text[0].isupper(), text
    assert text.endswith("."), text
    assert not text.startswith(("Of ", "Repeatable")), text
    assert len(text.split()) > 2, text


def test_the_options_of_calibrate_are_grouped():
    panels = {p.rich_help_panel for p in VERBS["calibrate"].params if p.rich_help_panel}
    assert panels == {
        "Frames", "Ranges", "What brings accuracy back", "What is quantized", "Verdict",
        "This machine",
    }  # fmt: skip
    alone = [p.name for p in VERBS["calibrate"].params if not p.rich_help_panel and not p.hidden]
    assert len(alone) <= 8, alone


def refused(verb, option, text):
    """Return the error of an option that is given first, whatever else is missing."""
    return str(CliRunner().invoke(app, [*verb.split(), option, text]).exception)


def having(*wanted):
    options_of = {name: {o for p in verb.params for o in p.opts} for name, verb in VERBS.items()}
    return [(name, o) for name, found in options_of.items() for o in wanted if o in found]


@pytest.mark.parametrize(("verb", "option"), having("--out"))
def test_nothing_is_written_to_an_object_store(verb, option):
    assert "which is only read" in refused(verb, option, "s3://bucket/out")


@pytest.mark.parametrize(("verb", "option"), having("--target", "--source", "--footage"))
def test_frames_may_lie_in_an_object_store_whose_address_holds_no_key(verb, option):
    if verb != "run":  # which takes addresses of cameras, too, and looks later
        assert "never from an address" in refused(verb, option, "s3://key:secret@bucket/drive")
