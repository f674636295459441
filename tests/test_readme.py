"""README.md: its blocks are run in order in one folder, its tables of calls are compared with torch. Family: exact."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import typer
from test_benchmarks import chart
from typer.testing import CliRunner

import convweights as cw
from convweights import cli, maps

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
# Commands that are run by make, by .ci/run or by whoever installs, not by this test.
INSTALLS = [
    "make demo",
    "make test",
    "pip install .",
    "pip install --no-build-isolation .",
    "CW_CUDA=0 pip install --no-build-isolation .",
    "CW_CUDA=1 pip install --no-build-isolation .",
    "CW_NATIVE=0 pip install --no-build-isolation .",
]
# Output that is another one on another machine: only the first column, without devices, is compared.
MACHINE = "convweights doctor"


def run_python(source: str, names: dict[str, object]) -> None:
    test = doctest.DocTestParser().get_doctest(source, names, "README.md", "README.md", 0)
    assert test.examples
    test.globs = names
    report: list[str] = []
    failed, _ = doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    assert failed == 0, "".join(report)


def run_console(source: str) -> None:
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", source, re.MULTILINE)
    assert sum(1 + output.count("\n") for _, output in commands) == source.count("\n")
    for command, shown in commands:
        program, *arguments = shlex.split(command)
        assert program == "convweights"
        printed = CliRunner().invoke(cli.app, arguments).output
        if command == MACHINE:
            printed, shown = labels(printed), labels(shown)
        assert printed == shown, command


def labels(table: str) -> list[str]:
    return [label for line in table.splitlines() if "cuda:" not in (label := line.split("  ")[0]) != "CUDA devices"]


def test_every_block(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    installs: list[str] = []
    for language, source in BLOCKS:
        if language == "python":
            run_python(source, names)
        elif language == "console":
            run_console(source)
        elif language == "toml":
            name, _, _ = source.removeprefix("# ").partition("\n")
            (tmp_path / name).write_text(source)
        else:
            assert language == "bash", f"a block of {language or 'no language'} would not be checked"
            installs += source.splitlines()
    assert installs == INSTALLS
    assert TEXT.count("\n```") == 2 * len(BLOCKS)
    assert "\n    " not in PROSE, "an indented block would not be checked"


def rows(header: str) -> list[tuple[str, str]]:
    """Of each row of the table under a header, the code that begins the first cell and the last."""
    table = TEXT[TEXT.index(header) :].partition("\n\n")[0].splitlines()[2:]
    return [re.fullmatch(r"\| `([^`]*)` \|(?:.*\|)? `([^`]*)`[^|]*\|", line).groups() for line in table]


def hand_rows() -> list[tuple[str, str]]:
    """Of each row of the table of what is done by hand: the code by hand, and here."""
    table = TEXT[TEXT.index("| what | by hand | here |") :].partition("\n\n")[0].splitlines()[2:]
    return [re.fullmatch(r"\| [^|]* \| `([^`]*)` \| `([^`]*)` \|", line).groups() for line in table]


BY_HAND = hand_rows()
CALLS = rows("| call | meaning |")
UPDATES = rows("| update | meaning |")
FILLS = rows("| fill | meaning |")
MAPS = rows("| map | the same")
CONSTANTS = {"cw": cw, "torch": torch, "F": F, "g": 4, "s": 1, "k": 3, "start": 1, "before": 2}
# Of the dimension that changes, where it is not m = 8 from n = 4: (n, m).
SHRINKS = ("average", "truncate", "Blocks", "Strided", "Truncate", "Center", "Offset")


def sizes(call: str) -> tuple[int, int]:
    # Powers of two, so that torch's means and weights, which round elsewhere, are exact.
    n, m = (8, 4) if any(word in call for word in SHRINKS) else (4, 8)
    return (m, m) if "groups=" in call else (n, m)


@pytest.mark.parametrize(("call", "same"), CALLS, ids=[call for call, _ in CALLS])
def test_calls_do_what_torch_does(device: str, call: str, same: str):
    n, m = sizes(call)
    dim = 0 if "truncate" in call else 1
    shapes = [[size if d == dim else 6 for d in range(4)] for size in (m, n)]
    if "keep=" in call:
        n, m = 6, 6
        shapes = [[6] * 4] * 2
    results = []
    for expression in (call, same):
        weight, source = (
            torch.arange(torch.Size(shape).numel(), device=device).float().view(shape) for shape in shapes
        )
        results.append(eval(expression, {**CONSTANTS, "n": n, "m": m, "weight": weight, "source": source}))
    assert torch.equal(*results)


@pytest.mark.parametrize(("call", "same"), UPDATES + FILLS, ids=[call for call, _ in UPDATES + FILLS])
def test_updates_do_what_torch_does(device: str, call: str, same: str):
    start = torch.arange(6 * 8 * 3 * 3, device=device).view(6, 8, 3, 3) / 64
    results = []
    for expression in (call, same):
        names = {"weight": start.clone(), "mask": start > 3, "cw": cw, "torch": torch}
        with torch.device(device):
            results.append(eval(expression, names))
    assert torch.equal(*results)


def layers(device: str) -> dict[str, object]:
    """What the table of what is done by hand writes and reads, the same at each call."""
    torch.manual_seed(0)
    with torch.device(device):
        made = {
            "conv": torch.nn.Conv2d(8, 6, 3, bias=False),
            "small": torch.nn.Conv2d(8, 4, 3, bias=False),
            "large": torch.nn.Conv2d(8, 9, 3, bias=False),
            "wide": torch.nn.Conv2d(16, 6, 3, bias=False),
            "narrow": torch.nn.Conv2d(4, 6, 3, bias=False),
            "five": torch.nn.Conv2d(8, 6, 5, bias=False),
            "deep": torch.nn.Conv3d(8, 6, (4, 3, 3), bias=False),
            "model": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)),
            "other": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)),
            "kernel": torch.randn(3, 3),
            "value": torch.randn(6, 8, 3, 3),
            "hwio": torch.randn(3, 3, 8, 6),
        }
    return {**made, "cw": cw, "torch": torch, "F": F}


@pytest.mark.parametrize(("hand", "here"), BY_HAND, ids=[here for _, here in BY_HAND])
def test_what_is_done_by_hand(device: str, hand: str, here: str):
    results, before = [], layers(device)
    for code in (hand, here):
        names = layers(device)
        with torch.device(device), torch.no_grad():
            exec(code, names)
        modules = {name: value for name, value in names.items() if isinstance(value, torch.nn.Module)}
        results.append({(n, k): t for n, module in modules.items() for k, t in module.state_dict().items()})
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    start = {(n, k): t for n, m in before.items() if isinstance(m, torch.nn.Module) for k, t in m.state_dict().items()}
    assert any(not torch.equal(start[key], results[0][key]) for key in start), "the code writes something"


@pytest.mark.parametrize(("call", "same"), MAPS, ids=[call for call, _ in MAPS])
def test_maps_do_what_torch_does(device: str, call: str, same: str):
    n, m = sizes(call)
    source = torch.arange(6 * n, device=device).float().view(2, 3, n)
    names = {**CONSTANTS, "n": n, "m": m, "j": torch.arange(m), "index": torch.tensor([3, 0, 1, 1, 2, 0, 3, 3])}
    weight = torch.empty(2, 3, m, device=device)
    cw.transfer_(weight, source, {2: eval(call, names)})
    assert torch.equal(weight, eval(same, {**names, "source": source}))


def test_tables_are_complete():
    public = {name for name in vars(cw) if name.endswith("_") and not name.startswith("_")}
    here = [(call, hand) for hand, call in BY_HAND]
    shown = {re.match(r"cw\.(init\.)?(\w+)", call).group(2) for call, _ in CALLS + UPDATES + FILLS + here}
    assert shown == public | {name for name in cw.init.__all__ if name.endswith("_")}
    assert {re.match(r"cw\.(\w+)", call).group(1) for call, _ in MAPS} == {
        name
        for name, value in vars(maps).items()
        if getattr(value, "__module__", "") == "convweights.maps" and hasattr(cw, name)
    } - {"Map", "Identity"}


def test_names_exist():
    assert [name for name in re.findall(r"\bcw\.(\w+)", TEXT) if not hasattr(cw, name)] == []
    targets = re.findall("^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall("`make ([a-z]+)", PROSE)) <= set(targets)
    for path in re.findall(r"\]\((.*?)\)", PROSE) + re.findall(r"`([\w.]+/[\w./]*)`", PROSE):
        assert (ROOT / path).exists(), path
    commands = typer.main.get_command(cli.app).commands
    assert set(re.findall("--[a-z][a-z-]+", TEXT.partition("\n## Command line")[2])) <= {
        *(flag for name in ("convert", "convert-all") for option in commands[name].params for flag in option.opts),
        *("--no-python", "--nproc-per-node"),  # torchrun's
    }


def test_benchmarks_are_those_of_the_committed_results():
    between = TEXT.partition(chart.START)[2].partition(chart.END)[0].strip()
    assert between == chart.section(chart.committed())
