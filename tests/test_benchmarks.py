"""Every contender of every benchmark computes what it is timed for. Families: as each contender says."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str):
    """The file as a module under its own name, which is how its neighbours import it."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


harness = load("harness")
bare = load("bare")
transfer = load("transfer")
update = load("update")
fill = load("fill")
perturbed = load("perturbed")
convert = load("convert")
chart = load("chart")


@pytest.mark.parametrize(
    "make",
    [make for file in (transfer, update, fill, perturbed) for make in file.CASES.values()],
    ids=[f"{file.__name__}-{name}" for file in (transfer, update, fill, perturbed) for name in file.CASES],
)
def test_contenders_agree(device: str, make):
    with torch.no_grad():
        case = make(device, tiny=True, compiled=False)
        case.check()
        kinds = [contender.kind for contender in case.contenders]
        assert kinds.count("ours") == 1
        assert kinds.count("eager") >= 2


@pytest.mark.parametrize("name", convert.CASES)
def test_conversions_agree(name: str):
    case = convert.CASES[name]("cpu", tiny=True)
    case.check()
    case.floor().run()
    case.close()
    assert not case.folder.exists()


def test_a_wrong_contender_is_found(device: str):
    with torch.no_grad():
        case = transfer.CASES["average"](device, tiny=True, compiled=False)
        case.eager("wrong", lambda: case.output.copy_(case.expected).mul_(1.001))
        with pytest.raises(AssertionError, match="average: wrong must give the expected result"):
            case.check()


def test_a_wrong_update_is_found(device: str):
    with torch.no_grad():
        case = update.CASES["normal"](device, tiny=True, compiled=False)
        w = case.weights[0]
        case.eager("twice as much", lambda: w.add_(torch.randn_like(w), alpha=2 * update.SCALE), exact=False)
        with pytest.raises(AssertionError, match="normal float32: twice as much must give the expected result"):
            case.check()
        case.contenders[-1] = harness.Contender("not ours", "ours", lambda: w.add_(torch.randn_like(w), alpha=1e-3))
        with pytest.raises(AssertionError, match="normal float32: not ours must give the expected result"):
            case.check()


def test_a_measurement(device: str):
    with torch.no_grad():
        case = transfer.CASES["replicate"](device, tiny=True, compiled=False)
        rows = harness.measure(case, rounds=2, least=1e-5)
    assert {row["kind"] for row in rows} == {"ours", "eager", "floor"}
    assert all(row["median_us"] > 0 for row in rows)


def test_the_table_of_the_readme(device: str):
    with torch.no_grad():
        case = transfer.CASES["hwio"](device, tiny=True, compiled=False)
        rows = harness.measure(case, rounds=2, least=1e-5)
    result = {"name": case.name, "title": case.title, "moved": case.moved, "rows": rows}
    text = chart.table({"conditions": harness.conditions(device), "results": [result]})
    assert text.count("\n") == 4
    assert "**HWIO to OIHW**" in text
    readme = f"before\n{chart.START}\nold\n{chart.END}\nafter"
    once = chart.replaced(readme, text)
    assert "old" not in once
    assert chart.replaced(once, text) == once
    with pytest.raises(SystemExit, match=r"README\.md must hold"):
        chart.replaced("no markers", text)
