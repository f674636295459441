"""What an installation must consist of, and the examples in its docstrings."""

import doctest
import importlib
import os
import pkgutil
import platform
import re
import shutil
import subprocess
import sys
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


# Functions of which the processor's abilities decide whether they are called: clones, and what is said to be for them.
GUARDED = ("Avx512", "Avx2", "runs_avx", "arch_x86_64_v", "convert_run")


@pytest.mark.native
@pytest.mark.skipif(platform.machine() != "x86_64", reason="about instruction sets of x86")
def test_wide_vectors_stay_where_they_are_guarded():
    """A function that all files share must not have been compiled for a processor that is not at hand."""
    code = subprocess.run(
        ["objdump", "-dC", "--no-show-raw-insn", native.cpu.__file__], capture_output=True, text=True, check=True
    ).stdout
    wide: dict[str, bool] = {}
    function = ""
    for line in code.splitlines():
        if named := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = named[1]
        elif re.search(r"%[yz]mm|\{%k", line):
            wide[function] = any(word in function for word in GUARDED)
    assert len(wide) > 10, "objdump finds no vectors, so this test would find none either"
    assert [name for name, guarded in wide.items() if not guarded] == []


@pytest.mark.parametrize("module", ["convweights", *MODULES])
def test_examples_in_docstrings(module: str):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0


def test_functions_have_examples():
    finder = doctest.DocTestFinder()
    functions = {name: getattr(convweights, name) for name in convweights.__all__ if name.endswith(("_", "channels"))}
    functions |= {name: getattr(convweights.init, name) for name in convweights.init.__all__ if name.endswith("_")}
    for name, function in {**functions, "noise": convweights.noise}.items():
        found = finder.find(function, name, globs={})
        assert any(test.examples for test in found), name


def test_a_directory_of_the_same_name_does_not_hide_it(tmp_path):
    """Such as the clone itself, seen from the directory it lies in."""
    (tmp_path / "convweights").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import convweights; print(convweights.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == convweights.__file__
