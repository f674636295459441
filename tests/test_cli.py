"""The command line: what it prints, what it refuses, and that it says no more than one sentence then."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from checkpoints import load, network, save, snapshot, without_metadata
from typer.testing import CliRunner

import convweights
from convweights import native
from convweights.cli import app
from convweights.fitting.rules import load_rules

LONG = "a.very.long.name." + "x" * 200 + ".weight"


@pytest.fixture
def source(tmp_path):
    return save(tmp_path / "net.pt", {"model": {**network(), LONG: torch.ones(2, 2)}, "epoch": 3})


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout if code == 0 else result.stderr


def test_version():
    assert run("--version") == f"convweights {convweights.__version__}\n"


def test_inspect(source):
    lines = run("inspect", source).splitlines()
    assert lines[0] == f"{source}: pt (zip), 8 tensors, 2.79 kB, state dict under 'model'"
    assert lines[1].split() == ["tensor", "dtype", "shape", "size"]
    assert re.split(" {2,}", lines[2]) == ["conv1.weight", "float32", "(8, 3, 3, 3)", "864 B"]
    assert any(line.startswith(LONG) for line in lines), "names are not cut"
    assert lines[-1] == "beside the state dict: epoch"


def test_inspect_metadata_and_ties(tmp_path):
    shared = torch.ones(2)
    assert run("inspect", save(tmp_path / "a.safetensors", {"w": shared}, by="me")).endswith("metadata: by=me\n")
    tied = run("inspect", save(tmp_path / "a.pt", {"a": shared, "b": shared, "n": 3}))
    assert tied.splitlines()[-2:] == ["no tensors: n", "share memory: a, b"]


FLAGS = (
    ("--in-channels", "conv1=4:tile:exact", "--in-channels", "conv2.weight=2"),
    ("--out-channels", "conv1=4", "--layout", "re:fc.*=OI->IO", "--dtype", "bfloat16"),
)
RULES = """
[[rule]]
match = "conv1"
in_channels = { to = 4, how = "tile", rescale = "exact" }
out_channels = 4
[[rule]]
match = "conv2.weight"
in_channels = 2
[[rule]]
match = "fc.weight"
layout = "OI->IO"
"""


def test_flags_and_rules_say_the_same(tmp_path, source):
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    flags = [*FLAGS[0], *FLAGS[1]]
    by_flags = run("convert", source, tmp_path / "a.safetensors", *flags)
    by_rules = run("convert", source, tmp_path / "b.safetensors", "--rules", rules, "--dtype", "bfloat16")
    assert without_metadata(tmp_path / "a.safetensors") == without_metadata(tmp_path / "b.safetensors")
    shown, _, file = by_flags.partition("\n\n")
    assert shown.splitlines()[1:] == by_rules.splitlines()[1:]
    assert file.startswith(f"# the same by a file: convweights convert {source} {tmp_path / 'a.safetensors'} --dtype ")
    rules.write_text(file)
    run("convert", source, tmp_path / "c.safetensors", "--rules", rules, "--dtype", "bfloat16")
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    found = load(tmp_path / "a.safetensors")
    assert found["conv1.weight"].shape == (4, 4, 3, 3)
    assert found["conv1.weight"].dtype == torch.bfloat16
    assert found["fc.weight"].shape == (6, 5)


def test_plan_shows_what_convert_does_and_writes_nothing(tmp_path, source):
    before = snapshot(tmp_path)
    target = tmp_path / "out.safetensors"
    arguments = (source, target, *FLAGS[0])
    planned = run("plan", *arguments).splitlines()
    assert snapshot(tmp_path) == before
    done = run("convert", *arguments, "--no-fsync").partition("\n\n")[0].splitlines()
    assert planned[1:] == done[1:]
    assert done[0].startswith(f"{source} (pt (zip)) -> {target} (safetensors, ")
    assert "conv1.weight  float32 (8, 3, 3, 3)  float32 (8, 4, 3, 3)  in_channels 3 -> 4 tile" in "\n".join(done)
    assert done[-1] == "note: left out beside the state dict, safetensors holds tensors only: epoch"
    assert "must not exist yet" in run("plan", *arguments, code=2)
    assert run("plan", *arguments, "--overwrite").splitlines()[1:] == planned[1:]


def test_like(tmp_path, source):
    like = save(tmp_path / "like.pt", {"fc.weight": torch.full((7, 6), 2.0)})
    run("convert", source, tmp_path / "out.pt", "--only", "fc.weight", "--like", like)
    assert load(tmp_path / "out.pt")["model"]["fc.weight"][5:].unique().tolist() == [2.0]


def test_overwrite(tmp_path, source):
    run("convert", source, source, "--dtype", "float16", "--overwrite")
    assert load(source)["model"]["fc.weight"].dtype == torch.float16
    assert load(source)["epoch"] == 3


SAID = [
    (("--in-channels", "conv1=4:zeros"), {"match": "conv1", "in_channels": {"to": 4, "how": "zeros"}}),
    (("--in-channels", "a=zeros"), {"match": "a", "in_channels": "zeros"}),
    (("--in-channels", "a=tile:exact"), {"match": "a", "in_channels": {"how": "tile", "rescale": "exact"}}),
    (("--select", "conv1=2,1,0"), {"match": "conv1", "in_channels": {"select": [2, 1, 0]}}),
    (("--select", "conv1=-1"), {"match": "conv1", "in_channels": {"select": [-1]}}),
    (("--kernel-size", "a=5"), {"match": "a", "kernel_size": 5}),
    (("--kernel-size", "a=3x5:resize"), {"match": "a", "kernel_size": {"to": [3, 5], "how": "resize"}}),
    (("--kernel-size", "a=center"), {"match": "a", "kernel_size": "center"}),
    (("--kernel-size", "a=5:init"), {"match": "a", "kernel_size": {"to": 5, "how": "init"}}),
    (("--inflate", "re:a=b.*=3:center"), {"match": "re:a=b.*", "inflate": {"to": 3, "how": "center"}}),
    (("--deflate", "a=mean"), {"match": "a", "deflate": "mean"}),
    (("--groups", "a=2"), {"match": "a", "groups": 2}),
    (("--rename", "re:(.*)\\.k=\\1.w"), {"match": "re:(.*)\\.k", "rename": "\\1.w"}),
    (("--drop", "a"), {"match": "a", "drop": True}),
    (("--only", "a=b"), {"match": "a=b", "only": True}),
    (("--new", "a=keep"), {"match": "a", "new": "keep"}),
    (("--new", "a=normal", "--seed", "3"), {"match": "a", "new": {"how": "normal", "seed": 3}}),
]


@pytest.mark.parametrize(("flags", "rule"), SAID)
def test_what_a_flag_says(tmp_path, flags, rule):
    """As a rule, whose text is in the answer and reads back."""
    state = {"a": torch.ones(4, 4, 4, 4), "conv1.weight": torch.ones(4, 4, 4, 4), "a=b": torch.ones(2, 2)}
    state["ab" if "--inflate" not in flags else "a=b2"] = torch.ones(2, 2, 3, 3)
    state["x.k"] = torch.ones(1)
    if "--deflate" in flags:
        state["a"] = torch.ones(4, 4, 4, 4, 4)
    like = {**state, "b.weight": torch.ones(1)}
    source, template = save(tmp_path / "a.pt", state), save(tmp_path / "like.pt", like)
    no_size = "=keep" in flags[1] or flags[1] in ("a=zeros", "a=tile:exact", "a=center")
    more = ("--like", template, "--no-strict") if no_size else ()
    found = json.loads(run("plan", source, tmp_path / "b.pt", *flags, *more, "--json"))
    assert found["rules"] == [rule]
    shown = run("convert", source, tmp_path / "b.pt", *flags, *more).partition("# the same by a file: ")[2]
    file = tmp_path / "rules.toml"
    file.write_text(shown.partition("\n")[2])
    assert load_rules("", file)[0].as_dict() == rule


def test_the_command_that_repeats_another(tmp_path, source):
    like = save(tmp_path / "like file.pt", network())
    shown = run("convert", source, tmp_path / "b.pt", "--like", like, "--drop", LONG, "--no-strict", "--no-fsync")
    line = next(line for line in shown.splitlines() if line.startswith("# the same by a file: "))
    words = shlex.split(line.removeprefix("# the same by a file: "))
    rules = tmp_path / "rules.toml"
    rules.write_text(shown.partition("FILE\n")[2])
    words = [str(rules) if word == "FILE" else word.replace("b.pt", "c.pt") for word in words]
    assert run(*words[1:]).splitlines()[1:] == shown.partition("\n\n")[0].splitlines()[1:]
    assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "c.pt").read_bytes()
    assert "# the same" not in run("convert", source, tmp_path / "d.pt", "--rules", rules, "--like", like)


def test_json_on_every_command(tmp_path, source):
    found = json.loads(run("inspect", source, "--json"))
    assert (found["nested"], found["beside_the_state_dict"], len(found["tensors"])) == ("model", ["epoch"], 8)
    assert found["tensors"][0] == {"name": "conv1.weight", "dtype": "float32", "shape": [8, 3, 3, 3], "bytes": 864}
    flags = ("--in-channels", "conv1=4", "--drop", "fc.weight", "--json")
    planned = json.loads(run("plan", source, tmp_path / "b.pt", *flags))
    done = json.loads(run("convert", source, tmp_path / "b.pt", *flags))
    assert {**planned, **{key: done[key] for key in ("target", "target_format", "file_bytes")}} == done
    assert done["file_bytes"] == (tmp_path / "b.pt").stat().st_size
    row = done["tensors"][0]
    assert (row["name"], row["from"]["shape"], row["to"]) == (
        "conv1.weight",
        [8, 3, 3, 3],
        {"dtype": "float32", "shape": [8, 4, 3, 3]},
    )
    assert (row["how"], row["scale"], row["new"]) == ("in_channels 3 -> 4 tile", "3/4", 0.25)
    assert done["dropped"] == [{"name": "fc.weight", "dtype": "float32", "shape": [5, 6], "how": "dropped"}]
    assert json.loads(run("doctor", "--json"))["convweights"] == convweights.__version__
    differs = json.loads(CliRunner().invoke(app, ["diff", str(source), str(tmp_path / "b.pt"), "--json"]).stdout)
    assert {tensor["name"] for tensor in differs["different"]} == {"conv1.weight", "fc.weight"}
    picture = ("show", source, "conv1.weight", "-o", tmp_path / "x.png", "--json")
    assert json.loads(run(*picture))["drawn"] == [{"file": str(source), "shape": [8, 3, 3, 3]}]


def test_diff_exits_with_1_where_files_differ(tmp_path, source):
    same = save(tmp_path / "same.safetensors", {**network(), LONG: torch.ones(2, 2)})
    assert run("diff", source, same).endswith("8 tensors, 0 different, 8 the same\n")
    other = save(tmp_path / "other.pt", {**network(), LONG: torch.ones(2, 2) * 3, "more": torch.ones(1)})
    result = CliRunner().invoke(app, ["diff", str(source), str(other)])
    assert result.exit_code == 1
    assert [re.split(" {2,}", line)[0] for line in result.stdout.splitlines()[2:]] == [LONG, "more"]
    assert run("diff", source, tmp_path / "none.pt", code=2).startswith("diff: b must be a checkpoint file, got ")


def test_show_draws_one_file_or_two(tmp_path, source):
    run("convert", source, tmp_path / "b.pt", "--in-channels", "conv1=1")
    for files in ([source], [source, tmp_path / "b.pt"]):
        picture = tmp_path / f"{len(files)}.png"
        assert run("show", *files, "conv1.weight", "-o", picture).startswith(f"{picture}: conv1.weight of {source}")
        assert picture.read_bytes().startswith(b"\x89PNG")
    for arguments, sentence in (
        (
            (source, "conv1.wieght", "-o", "x.png"),
            f"show: TENSOR must be a tensor of {source}, got 'conv1.wieght'; ",
        ),
        ((source, source, source, "fc.weight", "-o", "x.png"), "show: FILE must be one checkpoint or two, got 3"),
        ((source, "fc.weight", "-o", "x.jpg"), "show: output must end in .png, got x.jpg"),
        ((source, "bn.num_batches_tracked", "-o", "x.png"), "show: bn.num_batches_tracked (net.pt) must have a "),
    ):
        assert run("show", *arguments, code=2).startswith(sentence)


BAD = [
    (("--select", "conv1=a"), "convert: --select must be NAME=0,2,1, got 'conv1=a'"),
    (("--groups", "conv1=x"), "convert: --groups must be NAME=G, got 'conv1=x'"),
    (("--kernel-size", "conv1=3y3"), "convert: --kernel-size must be NAME=N[:how], got 'conv1=3y3'"),
    (("--kernel-size", "conv1=3:none"), "convert: how in kernel_size of --kernel-size conv1=3:none must be 'error', "),
    (("--new", "conv1=3"), "convert: --new must be NAME=how, got 'conv1=3'"),
    (("--deflate", "conv1=sum"), "convert: --deflate must be NAME=how, got 'conv1=sum'"),
    (("--select", "conv1=--1"), "convert: --select must be NAME=0,2,1, got 'conv1=--1'"),
    (("--in-channels", "conv1=--4"), "convert: --in-channels must be NAME=N[:how[:rescale]], got 'conv1=--4'"),
    (("--groups", "conv1=" + "9" * 5000), "convert: --groups must be NAME=G, got 'conv1=999"),
    (("--drop", ""), "convert: --drop must be NAME, got ''"),
    (("--in-channels", "conv1"), "convert: --in-channels must be NAME=VALUE, got 'conv1'"),
    (("--in-channels", "=3"), "convert: --in-channels must be NAME=VALUE, got '=3'"),
    (("--layout", "conv1="), "convert: --layout must be NAME=VALUE, got 'conv1='"),
    (("--in-channels", "conv1=x"), "convert: --in-channels must be NAME=N[:how[:rescale]], got 'conv1=x'"),
    (("--in-channels", "conv1=3:"), "convert: --in-channels must be NAME=N[:how[:rescale]], got 'conv1=3:'"),
    (("--out-channels", "a=3:tile:exact:x"), "convert: --out-channels must be NAME=N[:how[:rescale]], got "),
    (("--in-channels", "conv1=0"), "convert: in_channels of --in-channels conv1=0 must be at least 1, got 0"),
    (("--in-channels", "conv1=-2"), "convert: in_channels of --in-channels conv1=-2 must be at least 1, got -2"),
    (("--in-channels", "conv1=4:foo"), "convert: how in in_channels of --in-channels conv1=4:foo must be 'tile', "),
    (("--layout", "conv1=HWIO"), "convert: layout of --layout conv1=HWIO must hold the same letters of OIDHW, "),
    (("--dtype", "int8"), "convert: dtype must be 'float64', 'float32', 'float16' or 'bfloat16', got 'int8'"),
    (("--in-channels", "nope=4"), "convert: match of --in-channels nope=4 must name a tensor or a layer of "),
    (("--out-channels", "conv1=9"), "convert: out_channels of conv1.weight must say how where it grows "),
    (
        ("--in-channels", "conv1=4", "--in-channels", "conv1.*=5"),
        "convert: rules must agree on in_channels of conv1.we",
    ),
    (("--rules", "none.toml"), "convert: rules must be a readable TOML file, got none.toml (No such file"),
    (("--like", "none.pt"), "convert: like must be a checkpoint file, got none.pt, which does not exist"),
]


@pytest.mark.parametrize(("flags", "sentence"), BAD)
def test_a_refusal_is_one_sentence(tmp_path, source, flags, sentence):
    before = snapshot(tmp_path)
    for command in ("convert", "plan"):
        error = run(command, source, tmp_path / "out.pt", *flags, code=2)
        assert error.startswith(sentence.replace("convert:", f"{command}:", 1))
        assert error.count("\n") == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["inspect", "plan", "convert"])
def test_no_checkpoint(tmp_path, command):
    path = tmp_path / "none.pt"
    error = run(command, path, *([] if command == "inspect" else [tmp_path / "out.pt"]), code=2)
    argument = "file" if command == "inspect" else "source"
    assert error == f"{command}: {argument} must be a checkpoint file, got {path}, which does not exist\n"


def test_doctor(monkeypatch):
    monkeypatch.setattr(native, "facts", lambda: {"torch": "9.9", "CPU kernels": "x86-64-v4"}, raising=False)
    assert [line.split(maxsplit=1) for line in run("doctor").splitlines()][1:] == [
        ["torch", "9.9"],
        ["CPU", "kernels  x86-64-v4"],
    ]


def test_a_terminal_gets_a_table(tmp_path, source, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    from convweights.cli.commands import inspect

    inspect(save(tmp_path / "b.pt", {"[bold]w[/bold]" + "Q" * 80: torch.ones(2)}))
    shown = capsys.readouterr().out
    assert "[bold]w[/bold]" in shown.replace("\n", "")
    assert len(re.findall("Q", shown)) == 80, "long names are folded, not cut"


def test_as_a_program(tmp_path, source):
    def program(*arguments):
        command = [sys.executable, "-m", "convweights", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = program("convert", "net.pt", "out.safetensors", "--in-channels", "conv1=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert any(
        line.startswith("conv1.weight  float32 (8, 3, 3, 3)  float32 (8, 1, 3, 3)") for line in done.stdout.splitlines()
    )
    assert load(tmp_path / "out.safetensors")["conv1.weight"].shape == (8, 1, 3, 3)
    refused = program("convert", "net.pt", "out.safetensors")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("convert: target must not exist yet, got out.safetensors; ")
    assert refused.stderr.count("\n") == 1
