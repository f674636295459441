"""Times contenders for the same result: checked first, then interleaved in one run, medians, written as JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import convweights as cw

RESULTS = Path(__file__).parent / "results"
KINDS = ("ours", "variant", "eager", "compile", "bare", "floor")


def on_cpu(device: str, words: str) -> str:
    """What a title says of the CPU alone."""
    return f", {words}" if device == "cpu" else ""


@dataclass(frozen=True)
class Contender:
    """``run`` writes the case's output; ``exact`` says that the bits must agree, not only the values."""

    name: str
    kind: str
    run: Callable[[], Any]
    exact: bool = True


@dataclass
class Case:
    """One result that several contenders compute into ``output``."""

    name: str
    title: str
    output: torch.Tensor
    expected: torch.Tensor
    source: torch.Tensor
    contenders: list[Contender] = field(default_factory=list)
    threads: int | None = None
    rounds: int = 31
    # Whether a sample is one run, after one that is not timed, and nothing is there before either: what a contender
    # frees and takes again has its own state then, and not that in which another one left the machine's memory.
    alone: bool = False

    def ours(self, name: str, run: Callable[[], Any]) -> None:
        self.contenders.append(Contender(name, "ours", run))

    def variant(self, name: str, run: Callable[[], Any], *, exact: bool = True) -> None:
        """The same result by another road of ours."""
        self.contenders.append(Contender(name, "variant", run, exact))

    def eager(self, name: str, run: Callable[[], Any], *, exact: bool = True) -> None:
        self.contenders.append(Contender(name, "eager", run, exact))

    def bare(self, name: str, run: Callable[[], Any]) -> None:
        """The same result with everything known beforehand that others have to find out."""
        self.contenders.append(Contender(name, "bare", run))

    def compiled(self, name: str, write: Callable[..., Any], *, exact: bool = True) -> None:
        """``write(output, source)`` through torch.compile, specialised on these shapes."""
        call = torch.compile(write, fullgraph=True, dynamic=False)
        self.contenders.append(Contender(name, "compile", lambda: call(self.output, self.source), exact))

    @property
    def moved(self) -> int:
        """Bytes that must be read and written at the least."""
        return self.expected.numel() * self.expected.element_size() + self.source.numel() * self.source.element_size()

    def floor(self) -> Contender:
        """``copy_`` between two contiguous buffers that together hold the bytes of source and output."""
        there = torch.ones(self.moved // 8, device=self.output.device)
        here = torch.empty_like(there)
        return Contender("copy_ of the same bytes", "floor", lambda: here.copy_(there))

    def clear(self) -> None:
        """Take away what a run has left outside of memory; not timed, and only called where runs are ``alone``."""

    def close(self) -> None:
        """Let go of all that it holds outside of memory."""

    def check(self) -> None:
        """Raise where a contender's result is not the expected one. The floor has none."""
        for contender in self.contenders:
            self.output.fill_(math.nan)
            contender.run()
            if contender.exact:
                as_bits = torch.int16 if self.output.element_size() == 2 else torch.int32
                same = torch.equal(self.output.view(as_bits), self.expected.view(as_bits))
            else:
                # Sums of values of both signs lose what cancels: the unit is that of the largest value read.
                unit = torch.finfo(self.output.dtype).eps * self.source.abs().max().item()
                same = torch.allclose(self.output, self.expected, rtol=0, atol=2 * unit)
            if not same:
                raise AssertionError(f"{self.name}: {contender.name} must give the expected result before it is timed")


class InPlace(Case):
    """Weights that every contender changes in place, from the values they start with."""

    def __init__(self, name: str, title: str, weights: Sequence[torch.Tensor], **more: Any) -> None:
        super().__init__(name, title, *[weights[0]] * 3, **more)
        self.weights, self.start = weights, [weight.clone() for weight in weights]

    @property
    def moved(self) -> int:
        return 2 * sum(weight.nbytes for weight in self.weights)

    def floor(self) -> Contender:
        def multiply() -> None:
            for weight in self.weights:
                weight.mul_(0.999999)

        def multiply_together() -> None:
            torch._foreach_mul_(self.weights, 0.999999)

        # On a device a loop over many tensors would time its launches.
        together = self.weights[0].is_cuda and len(self.weights) > 1
        return Contender("mul_ of the same weights", "floor", multiply_together if together else multiply)

    def is_right(self, contender: Contender) -> bool:
        """Whether the weights are what the contender should have made of them."""
        raise NotImplementedError

    def check(self) -> None:
        for contender in self.contenders:
            for weight, start in zip(self.weights, self.start, strict=True):
                weight.copy_(start)
            contender.run()
            if not self.is_right(contender):
                raise AssertionError(f"{self.name}: {contender.name} must give the expected result before it is timed")


def measure(case: Case, *, rounds: int, least: float) -> list[dict[str, Any]]:
    """Medians of ``rounds`` samples; a sample lasts ``least`` seconds or more, and contenders take turns."""
    contenders = [*case.contenders, case.floor()]
    synchronise = torch.cuda.synchronize if case.output.device.type == "cuda" else lambda: None

    def sample(contender: Contender, number: int) -> float:
        synchronise()
        start = time.perf_counter()
        for _ in range(number):
            contender.run()
        synchronise()
        return (time.perf_counter() - start) / number

    numbers = []
    for contender in contenders:
        sample(contender, 2)
        numbers.append(1 if case.alone else max(1, math.ceil(least / sample(contender, 2))))
    times: list[list[float]] = [[] for _ in contenders]
    order, shuffled = list(range(len(contenders))), random.Random(0)
    for _ in range(rounds):
        # Another order each round, so that nobody always follows the same one, in its caches and threads.
        shuffled.shuffle(order)
        for who in order:
            if case.alone:
                case.clear()
                contenders[who].run()
                case.clear()
            times[who].append(sample(contenders[who], numbers[who]))
    rows = []
    for contender, taken in zip(contenders, times, strict=True):
        quartiles = statistics.quantiles(taken, n=4)
        rows.append(
            {
                "name": contender.name,
                "kind": contender.kind,
                "median_us": round(1e6 * statistics.median(taken), 2),
                "quartiles_us": [round(1e6 * quartiles[0], 2), round(1e6 * quartiles[2], 2)],
            }
        )
    return rows


def best(rows: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return min((row for row in rows if row["kind"] == kind), key=lambda row: row["median_us"], default=None)


def show(result: dict[str, Any]) -> None:
    ours = best(result["rows"], "ours")
    assert ours is not None
    print(f"\n{result['name']}: {result['title']}, {result['moved'] / 1e6:.1f} MB")
    for row in sorted(result["rows"], key=lambda row: (KINDS.index(row["kind"]), row["median_us"])):
        ratio = row["median_us"] / ours["median_us"]
        print(f"  {row['kind']:8} {row['median_us']:10.1f} us {ratio:7.2f}x  {row['name']}")


def conditions(device: str) -> dict[str, Any]:
    """Where, with what and when: what a number means nothing without."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "kind": device,
        "threads": torch.get_num_threads(),
        "simd": cw.native.cpu.simd_level() if cw.native.cpu is not None else "none (reference)",
        "versions": {
            "convweights": cw.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        # A copy of the working tree without its own history is told which commit it is.
        "commit": os.environ.get("CW_COMMIT")
        or (git("rev-parse", "--short", "HEAD") or "none") + ("+" if git("status", "--porcelain") else ""),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(name: str, cases: dict[str, Callable[..., Case]], cpu_only: Sequence[str] = ()) -> None:
    """The command line of a file of cases; ``cpu_only`` are those that ask nothing new of a device."""
    parser = argparse.ArgumentParser(description=f"Benchmarks of {name}, checked first, interleaved, medians.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="few rounds, no torch.compile, nothing written")
    parser.add_argument("--only", action="append", choices=list(cases), help="a case; may be repeated; nothing written")
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice unless given")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    results, threads = [], torch.get_num_threads()
    with torch.no_grad():
        left_out = () if options.device == "cpu" else cpu_only
        for case_name in options.only or [case_name for case_name in cases if case_name not in left_out]:
            torch.manual_seed(0)
            case = cases[case_name](options.device, compiled=not options.quick)
            torch.set_num_threads(case.threads or threads)
            case.check()
            # A device's launches vary less than a CPU's threads.
            least = 0.002 if options.quick else 0.01 if options.device == "cpu" else 0.004
            rows = measure(case, rounds=7 if options.quick else case.rounds, least=least)
            results.append({"name": case.name, "title": case.title, "moved": case.moved, "rows": rows})
            show(results[-1])
            case.close()
            del case
    torch.set_num_threads(threads)
    if not (options.quick or options.only):
        path = RESULTS / (f"{name}.json" if options.device == "cpu" else f"{name}-cuda.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"conditions": conditions(options.device), "results": results}, indent=1) + "\n")
        print(f"\nwritten: {path.relative_to(Path(__file__).parent.parent)}")
