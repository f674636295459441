"""What an installation must consist of, and the examples in its docstrings."""

import doctest
import importlib
import os
import pkgutil
import shutil
import subprocess
from pathlib import Path

import pytest

import convweights
from convweights import native

PACKAGE = Path(convweights.__file__).parent
NATIVE = os.environ.get("CW_NATIVE") != "0"
CUDA = NATIVE and (
    os.environ.get("CW_CUDA") == "1"
    or (os.environ.get("CW_CUDA") != "0" and (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()))
)
MODULES = [
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "convweights.")
    if not module.name.rpartition(".")[2].startswith("_")
]


def libraries() -> list[Path]:
    return sorted(PACKAGE.glob("_C*.so")) + sorted(PACKAGE.glob("_cuda*.so"))


def test_compiled_libraries_are_there_unless_left_out():
    """CW_NATIVE=0 in the environment of the tests says that the installation was made with it, and CW_CUDA likewise."""
    assert (convweights.native.cpu is not None) == NATIVE
    assert (native.cuda_library() is not None) == bool(CUDA)


@pytest.mark.native
def test_no_symbol_of_torchs_unstable_interface():
    assert libraries()
    for library in libraries():
        listed = subprocess.run(["nm", "-DC", str(library)], capture_output=True, text=True, check=True).stdout
        assert "aoti_torch" in listed
        unstable = [line for line in listed.splitlines() if any(name in line for name in ("at::", "c10::", "torch::"))]
        assert unstable == [], library.name


@pytest.mark.parametrize("module", ["convweights", *MODULES])
def test_examples_in_docstrings(module: str):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0


def test_functions_have_examples():
    finder = doctest.DocTestFinder()
    for name in (
        "transfer_",
        "replicate_channels_",
        "average_channels_",
        "truncate_channels_",
        "replicate_channels",
        "average_channels",
        "truncate_channels",
    ):
        found = finder.find(getattr(convweights, name), name, globs={})
        assert any(test.examples for test in found), name
