"""Loads the compiled kernels that this installation has. Absent ones are passed over, broken ones raise."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import torch

import convweights.ops.fill
import convweights.ops.journal
import convweights.ops.transfer
import convweights.ops.update  # the schemas must be there before kernels are registered over them

OLDEST_TORCH = (2, 10)
_HERE = Path(__file__).parent


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _ignored() -> bool:
    return os.environ.get("CW_NATIVE") == "0"


def cuda_library() -> Path | None:
    """The compiled CUDA kernels, where they were built."""
    return None if _ignored() else next(iter(sorted(_HERE.glob("_cuda*.so"))), None)


def load() -> ModuleType | None:
    """Register the native kernels over the reference; the CPU module, or None for a pure-Python installation.

    With CW_NATIVE=0 in the environment the compiled libraries are left alone, as if they were not there.
    Raises ImportError with the reason where a compiled library is there and does not load.
    """
    if _torch_version() < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"convweights: torch must be at least {oldest}, got {torch.__version__}; install a newer torch"
        )
    if _ignored():
        return None
    module = None
    if importlib.util.find_spec("convweights._C") is not None:
        try:
            module = importlib.import_module("convweights._C")
        except Exception as error:
            raise ImportError(_broken("_C", error)) from error
    library = cuda_library()
    if library is not None:
        try:
            torch.ops.load_library(str(library))
            if torch.version.cuda is not None:
                torch.ops.convweights.check_cuda_symbols()
        except Exception as error:
            raise ImportError(_broken("_cuda", error)) from error
    return module


def _broken(library: str, error: Exception) -> str:
    return (
        f"convweights: the compiled library {library} must load with torch {torch.__version__}, got {error}; "
        f"reinstall convweights, or with CW_NATIVE=0 set for a pure-Python installation"
    )


# The compiled CPU module, or None.
cpu = load()


def facts() -> dict[str, str]:
    """What this installation consists of and which backend serves which device, for ``convweights doctor``."""
    import platform

    import numpy

    library = cuda_library()
    rows = {
        "convweights": convweights.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "CPU kernels": f"compiled by {cpu.compiler()}" if cpu else "none; the pure-torch reference",
        "SIMD level": cpu.simd_level() if cpu else "torch's own",
        "CUDA kernels": f"compiled for {torch.ops.convweights.cuda_architectures()}" if library else "none",
        "CPU": "native kernels" if cpu else "pure-torch reference",
    }
    cuda = "native kernels" if library else "pure-torch reference"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        rows[f"cuda:{index} ({torch.cuda.get_device_name(index)}, sm_{major}{minor})"] = cuda
    if not torch.cuda.is_available():
        rows["CUDA devices"] = "none that torch can use"
    rows["other devices"] = "pure-torch reference"
    return rows
