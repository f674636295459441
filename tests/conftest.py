"""Hypothesis profiles and the devices that the tests run on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from convweights import native

QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
settings.register_profile("default", max_examples=150, deadline=None, suppress_health_check=QUIET)
settings.register_profile("ci", max_examples=1500, deadline=None, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# A pure-Python installation is tested with CW_NATIVE=0 in the environment, as it was made.
NATIVE = os.environ.get("CW_NATIVE") != "0"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def threads():
    """``torch.set_num_threads`` for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


LEVELS = native.cpu.simd_levels() if native.cpu is not None else []


def _choose(level: str) -> Iterator[str]:
    native.cpu.choose_simd_level(level)
    yield level
    native.cpu.choose_simd_level(LEVELS[0])


@pytest.fixture(params=LEVELS)
def simd_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that update can run on here, chosen for the length of a test."""
    yield from _choose(request.param)


@pytest.fixture(params=["reference", *LEVELS])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and each instruction set."""
    if request.param == "reference":
        yield request.param
    else:
        yield from _choose(request.param)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "native: about the compiled kernels; left out with CW_NATIVE=0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not NATIVE:
        for item in items:
            if item.get_closest_marker("native"):
                item.add_marker(pytest.mark.skip(reason="CW_NATIVE=0: there are no compiled kernels"))
