"""The programs that train without gradients. Family: exact, but for the accuracies."""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import convweights as cw

EXAMPLES = Path(__file__).parent.parent / "examples"
# They import each other by their own names.
sys.path.insert(0, str(EXAMPLES))
digits, es, mezo = (importlib.import_module(name) for name in ("digits", "es", "mezo"))

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2")


def run_mezo(*options: str):
    app = typer.Typer(add_completion=False)
    app.command()(mezo.main)
    return CliRunner().invoke(app, options)


def run_es(*options: str, launcher: tuple[str, ...] = ()) -> tuple[str, float]:
    command = [sys.executable, *launcher, str(EXAMPLES / "es.py"), *options]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return printed(found.stdout)


def printed(output: str) -> tuple[str, float]:
    """The digest and the accuracy that es.py prints."""
    digest = re.search("^the same bits in all processes: blake2b ([0-9a-f]{32})$", output, re.MULTILINE)
    accuracy = re.search(r"^accuracy ([0-9.]+)% on held-out digits", output, re.MULTILINE)
    return digest.group(1), float(accuracy.group(1)) / 100


def test_mezo_is_deterministic_and_lowers_the_loss(threads):
    threads(1)
    first = mezo.train(steps=60, lr=0.1)
    assert first.restored
    assert sum(first.curves.loss[-10:]) < 0.9 * sum(first.curves.loss[:10])
    again = mezo.train(steps=60, lr=0.1, restore="snapshot")
    assert again.curves == first.curves
    assert digits.digest(again.net) == digits.digest(first.net)
    assert digits.digest(mezo.train(steps=60, lr=0.1, seed=1).net) != digits.digest(first.net)


def test_mezo_in_bfloat16():
    done = mezo.train(steps=2, dtype=torch.bfloat16)
    assert done.restored
    assert {weight.dtype for weight in done.net.parameters()} == {torch.bfloat16}


def test_mezo_prints_and_draws(tmp_path, threads):
    threads(torch.get_num_threads())
    done = run_mezo("--steps", "3", "--seeds", "2", "--plot", str(tmp_path / "curves.png"))
    assert done.exit_code == 0, done.output
    assert "came back bit for bit on the first and the last step: yes" in done.output
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_check_of_mezo_can_fail(monkeypatch, threads):
    """Weights that are brought back by the opposite of the noise are not those from before."""
    threads(torch.get_num_threads())

    class Drifting:
        nbytes = 0

        def __init__(self, net, *, scale, restore, **noise):
            self.net, self.scale, self.noise = net, scale, noise

        def flip(self):
            cw.perturb_(self.net, scale=-2 * self.scale, **self.noise)

    @contextlib.contextmanager
    def drifting(net, **options):
        block = Drifting(net, **options)
        cw.perturb_(net, scale=block.scale, **block.noise)
        yield block
        cw.perturb_(net, scale=block.scale, **block.noise)

    monkeypatch.setattr(cw, "perturbed", drifting)
    done = run_mezo("--steps", "1")
    assert done.exit_code == 1
    assert "on the first and the last step: NO" in done.output


def test_utilities_are_centred_ranks():
    losses = torch.tensor([[3.0, 0.5], [float("inf"), 1.0], [0.25, 2.0]])
    assert torch.equal(es.utilities(losses), torch.tensor([[4, 1], [5, 2], [0, 3]]) / 5 - 0.5)


def test_two_processes_compute_what_one_does(tmp_path, monkeypatch, capsys, threads):
    """5 members, so that one process has more of them than the other."""
    two = run_es("--processes", "2", "--steps", "6", "--members", "5")
    threads(torch.get_num_threads())
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    settings = es.Settings(members=5, steps=6, scale=0.02, lr=0.4, seed=0, plot=None)
    es.work(0, 1, f"file://{tmp_path}/meeting", settings, digits.load())
    assert printed(capsys.readouterr().out) == two


@pytest.mark.parametrize(("module", "package"), [("sklearn.datasets", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_a_missing_package_is_one_sentence(monkeypatch, capsys, module: str, package: str):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, "argv", ["examples/mezo.py"])
    with pytest.raises(SystemExit) as stopped:
        mezo.main(plot=Path("curves.png"))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"mezo: {package} must be installed; run pip install {package}\n"


@pytest.mark.slow
def test_mezo_learns():
    done = run_mezo()
    assert done.exit_code == 0
    assert float(re.search(r"accuracy ([0-9.]+)%", done.output).group(1)) > 90


@pytest.mark.slow
def test_es_learns_under_torchrun():
    digest, accuracy = run_es(launcher=TORCHRUN)
    assert accuracy > 0.88
    assert run_es() == (digest, accuracy)
