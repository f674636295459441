"""Builds the compiled libraries: convweights._C always, convweights._cuda where nvcc is found.

CW_NATIVE=0 leaves both out, CW_CUDA=0 the second, CW_CUDA=1 fails where there is no nvcc.
"""

import os
import shutil
from pathlib import Path

from setuptools import Extension, setup

# 2.10: one binary serves every torch from there on.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# Vectors of the clones never cross a call, so that their ABI (psabi) is no matter.
# The meaning is one rounded operation at a time; strict aliasing would forbid panels of integers over floats.
EXACT = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing"]
CPP_FLAGS = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", *EXACT]
HEADERS = [str(path) for path in sorted(Path("csrc").rglob("*.h"))]


def cuda_home() -> Path | None:
    """A toolkit root with all that a build needs; the nvcc on PATH may be a wrapper that lies elsewhere."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    needed = ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart_static.a")
    for candidate in candidates:
        if candidate and all((Path(candidate) / name).exists() for name in needed):
            return Path(candidate)
    return None


def cpu_extension() -> Extension:
    import pybind11
    from torch.utils import cpp_extension

    return Extension(
        "convweights._C",
        sorted(str(path) for path in Path("csrc").glob("*.cpp")),
        language="c++",
        # torch brings headers of pybind11 too, and some of its versions refuse them beside the stable ABI.
        include_dirs=[pybind11.get_include(), *cpp_extension.include_paths()],
        library_dirs=cpp_extension.library_paths(),
        libraries=["c10", "torch_cpu"],
        extra_compile_args={"cxx": [*CPP_FLAGS, STABLE_ABI]},
        extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
        depends=HEADERS,
    )


def cuda_extension(home: Path) -> Extension:
    from torch.utils import cpp_extension

    cpp_extension.CUDA_HOME = str(home)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
    return Extension(
        "convweights._cuda",
        ["csrc/cuda.cu"],
        language="c++",
        include_dirs=[*cpp_extension.include_paths(), str(home / "include")],
        library_dirs=[*cpp_extension.library_paths(), str(home / "lib64")],
        libraries=["c10", "torch_cpu", "cudart_static", "rt", "dl", "pthread"],
        extra_compile_args={
            "cxx": [*CPP_FLAGS, STABLE_ABI],
            "nvcc": ["-O3", "-std=c++20", "--fmad=false", "-DUSE_CUDA", "-Xcompiler=-fvisibility=hidden", STABLE_ABI],
        },
        extra_link_args=["-Wl,--no-as-needed", "-ltorch", "-Wl,--exclude-libs,libcudart_static.a"],
        depends=HEADERS,
    )


def extensions() -> list[Extension]:
    if os.environ.get("CW_NATIVE") == "0":
        return []
    found = [cpu_extension()]
    wanted = os.environ.get("CW_CUDA", "")
    home = cuda_home()
    if wanted == "1" and home is None:
        raise SystemExit("setup.py: CW_CUDA=1 must find nvcc, got none; set CUDA_HOME to a CUDA toolkit")
    if wanted != "0" and home is not None:
        found.append(cuda_extension(home))
    return found


def forget_left_out(built: list[Extension]) -> None:
    """Delete what an earlier build left behind and this one leaves out: it would be packed, or loaded, all the same."""
    names = {extension.name.split(".")[-1] for extension in built}
    for library in [*Path("build").glob("lib*/convweights/_*.so"), *Path("convweights").glob("_*.so")]:
        if library.name.split(".")[0] not in names:
            library.unlink()


def build_commands(built: list[Extension]) -> dict[str, type]:
    if not built:
        return {}
    from torch.utils.cpp_extension import BuildExtension

    return {"build_ext": BuildExtension}


built = extensions()
forget_left_out(built)
setup(ext_modules=built, cmdclass=build_commands(built))
