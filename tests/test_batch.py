"""Many checkpoints in one call: all that can be are converted, alone or by several processes. Family: exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import load, network, save, snapshot, without_metadata
from test_other_sources import KERNEL
from test_targets import holds, hugging_face
from typer.testing import CliRunner

import convweights as cw
from convweights.cli import app
from convweights.cli.progress import events

RULES = [{"match": "conv1", "in_channels": 6}]


@pytest.fixture
def zoo(tmp_path) -> Path:
    """A file, one in a directory, a model's directory, a broken file, and things that are no checkpoints."""
    folder = tmp_path / "zoo"
    (folder / "deep").mkdir(parents=True)
    save(folder / "a.safetensors", network(1))
    save(folder / "deep" / "b.pt", network(2))
    hugging_face(folder / "net")
    (folder / "broken.safetensors").write_bytes(b"no checkpoint")
    (folder / "notes.txt").write_text("hello")
    return folder


def by_name(outcomes) -> dict[str, str]:
    return {outcome.source.name: outcome.words for outcome in outcomes}


def test_all_are_converted_but_the_broken_one(zoo, tmp_path):
    told = []
    outcomes = cw.convert_all(zoo, tmp_path / "out", rules=RULES, fsync=False, told=told.append)
    wanted = {"a.safetensors": "converted", "b.pt": "converted", "net": "converted", "broken.safetensors": "failed"}
    assert by_name(outcomes) == wanted
    assert sorted(told, key=str) == sorted(outcomes, key=str)
    (failed,) = [outcome.error for outcome in outcomes if outcome.error]
    assert failed.startswith("convert: source must be a ")
    assert (tmp_path / "out/net/config.json").is_file()
    for name in ("a.safetensors", "deep/b.pt"):
        assert load(tmp_path / "out" / name)["conv1.weight"].shape == (8, 6, 3, 3)


def test_beside_the_sources_and_again(zoo, tmp_path):
    """What the first call has made is no source of the second one."""
    (zoo / "broken.safetensors").unlink()
    first = by_name(cw.convert_all(zoo, zoo, to=".pt", fsync=False))
    assert first == {"a.safetensors": "converted", "b.pt": "there already", "net": "converted"}
    before = snapshot(zoo)
    again = by_name(cw.convert_all(zoo, zoo, to=".pt", fsync=False))
    assert again == {"a.safetensors": "there already", "b.pt": "there already", "net": "there already"}
    assert snapshot(zoo) == before


def test_a_directory_onto_itself(zoo, tmp_path):
    """No source passes for its own target: it is converted, or the call is refused."""
    before = snapshot(zoo)
    with pytest.raises(cw.CheckpointError, match=r"^convert_all: out must be another directory than folder, got .*; "):
        cw.convert_all(zoo, zoo / "deep" / "..", dtype="float16")
    assert snapshot(zoo) == before
    outcomes = by_name(cw.convert_all(zoo / "deep", zoo / "deep", dtype="float16", overwrite=True, fsync=False))
    assert outcomes == {"b.pt": "converted"}
    assert load(zoo / "deep" / "b.pt")["conv1.weight"].dtype == torch.float16


def test_a_template_that_is_not_there_is_said_once(zoo, tmp_path):
    with pytest.raises(cw.CheckpointError, match=r"^convert_all: like must "):
        cw.convert_all(zoo, tmp_path / "out", like=tmp_path / "none.pt")
    assert not (tmp_path / "out").exists()


def test_it_goes_on_where_it_was_stopped(zoo, tmp_path):
    cw.convert_all(zoo, tmp_path / "out", fsync=False)
    before = snapshot(tmp_path / "out")
    (tmp_path / "out/a.safetensors").unlink()
    save(zoo / "broken.safetensors", network(3))
    again = by_name(cw.convert_all(zoo, tmp_path / "out", fsync=False))
    assert again == {
        "a.safetensors": "converted",
        "b.pt": "there already",
        "net": "there already",
        "broken.safetensors": "converted",
    }
    after = snapshot(tmp_path / "out")
    after.pop("broken.safetensors")
    assert after == before
    assert set(by_name(cw.convert_all(zoo, tmp_path / "out", overwrite=True)).values()) == {"converted"}


def test_a_model_is_one_checkpoint_and_names_have_dots(tmp_path):
    """The folder may be the checkpoint, an empty target is none, what overflows is said, links are not followed."""
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    hugging_face(zoo / "Net2.5-0.5B")
    (zoo / "loop").symlink_to(zoo)
    save(zoo / "a.safetensors", {"fc.weight": torch.full((2, 2), 1e30)})
    (tmp_path / "out" / "Net2.5-0.5B").mkdir(parents=True)
    outcomes = cw.convert_all(zoo, tmp_path / "out", dtype="float16", fsync=False)
    assert by_name(outcomes) == {"Net2.5-0.5B": "converted", "a.safetensors": "converted"}
    (small,) = [outcome for outcome in outcomes if outcome.source.name == "a.safetensors"]
    assert small.notes == ("finite values became infinite in the cast of fc.weight",)
    (one,) = cw.convert_all(zoo / "Net2.5-0.5B", tmp_path / "one", fsync=False)
    assert one.words == "converted"
    assert (tmp_path / "one" / "config.json").is_file()


def test_all_of_one_format(zoo, tmp_path):
    import numpy as np

    np.savez(zoo / "c.npz", **{"conv1/weight": KERNEL})
    outcomes = cw.convert_all(zoo, tmp_path / "out", to=".safetensors", fsync=False)
    assert {o.target.name for o in outcomes} == {
        "a.safetensors",
        "b.safetensors",
        "c.safetensors",
        "net",
        "broken.safetensors",
    }
    holds(tmp_path / "out/deep/b.safetensors", network(2))
    save(zoo / "a.pt", network())
    before = snapshot(tmp_path)
    with pytest.raises(
        cw.CheckpointError, match=r"to must lead each checkpoint to a name of its own, got .*a\.safetensors"
    ):
        cw.convert_all(zoo, tmp_path / "other", to=".safetensors")
    with pytest.raises(ValueError, match=r"^convert_all: to must be one of \.safetensors"):
        cw.convert_all(zoo, tmp_path / "other", to="pt")
    with pytest.raises(cw.CheckpointError, match=r"^convert_all: folder must be a directory"):
        cw.convert_all(tmp_path / "none", tmp_path / "other")
    with pytest.raises(cw.CheckpointError, match=r"^convert_all: folder must hold checkpoints, got none in"):
        cw.convert_all(zoo / "net" / "sub", tmp_path / "other")
    with pytest.raises(cw.CheckpointError, match=r"^convert_all: out must be a directory, got the file"):
        cw.convert_all(zoo, zoo / "notes.txt")
    with pytest.raises(TypeError, match=r"^convert_all: colour must be an argument of convert"):
        cw.convert_all(zoo, tmp_path / "other", colour="red")
    for name, value, error in (("workers", 0, ValueError), ("strict", 5, TypeError), ("dtype", "int8", TypeError)):
        with pytest.raises(error, match=rf"^convert_all: {name} must be "):
            cw.convert_all(zoo, tmp_path / "other", **{name: value})
    assert snapshot(tmp_path) == before


def test_the_command(zoo, tmp_path):
    run = CliRunner().invoke
    done = run(app, ["convert-all", str(zoo), str(tmp_path / "out"), "--dtype", "bfloat16", "--no-fsync"])
    assert done.exit_code == 1
    assert "there already" not in done.stdout
    assert any(line.split()[:2] == ["broken.safetensors", "failed"] for line in done.stdout.splitlines())
    assert "convert: source must be a " in done.stderr
    (zoo / "broken.safetensors").unlink()
    done = run(app, ["convert-all", str(zoo), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["failed"] == 0
    assert {item["outcome"] for item in found["checkpoints"]} == {"there already"}
    done = run(app, ["convert-all", str(tmp_path / "none"), str(tmp_path / "out")])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_events(capsys):
    now = iter([0.0, 0.1, 1.0, 1.1, 2.0])
    told = events("a.pt", lambda: next(now))
    for done in (10, 50, 60, 100):
        told(done, 200, "fc")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first == {
        "event": "progress",
        "checkpoint": "a.pt",
        "bytes": 50,
        "of": 200,
        "tensor": "fc",
        "bytes_per_second": 50,
        "seconds_left": 3.0,
    }
    assert second["bytes"] == 100


@pytest.mark.parametrize("few", [False, True])
def test_processes_share_the_work(zoo, tmp_path, few: bool):
    """torchrun with two processes: of four checkpoints each takes two; of one each writes some of its files."""
    if few:
        folder = zoo / "net"
        (folder / "pytorch_model.bin").unlink()
        zoo = tmp_path / "one"
        zoo.mkdir()
        folder.rename(zoo / "net")
    cw.convert_all(zoo, tmp_path / "alone", rules=RULES, shard_size=300, fsync=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    command += [sys.executable, "-m", "convweights", "convert-all", str(zoo), str(tmp_path / "shared")]
    command += ["--in-channels", "conv1=6", "--shard-size", "300", "--no-fsync", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    found = json.loads(done.stdout)
    assert found["failed"] == (0 if few else 1), done.stderr
    assert len(found["checkpoints"]) == (1 if few else 4)
    assert (done.returncode == 0) == few
    alone, shared = snapshot(tmp_path / "alone"), snapshot(tmp_path / "shared")
    assert alone.keys() == shared.keys()
    for name in alone:
        if name.endswith(".safetensors"):
            assert without_metadata(tmp_path / "alone" / name) == without_metadata(tmp_path / "shared" / name)
        elif name.endswith(".json"):
            assert alone[name] == shared[name]
    assert not torch.distributed.is_initialized()
