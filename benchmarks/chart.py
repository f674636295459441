"""Writes README's table of benchmarks and ``results/transfer.png`` from the committed JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import RESULTS, best

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
COLOURS = {"ours": "#1b6ca8", "compile": "#e08e45", "eager": "#b0b0b0"}
NAMES = {"ours": "convweights", "compile": "torch.compile", "eager": "best eager"}


def described(conditions: dict[str, Any]) -> str:
    threads = "" if conditions["kind"] == "cuda" else f", {conditions['threads']} threads, {conditions['simd']}"
    return (
        f"{conditions['device']}{threads}; torch {conditions['versions']['torch']}, commit {conditions['commit']}, "
        f"{conditions['date']}"
    )


def time(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['median_us'] / 1000:.2f} ms" if row["median_us"] >= 1000 else f"{row['median_us']:.0f} us"


def table(run: dict[str, Any]) -> str:
    lines = [
        described(run["conditions"]) + ". Medians; *floor* is a `copy_` of as many bytes.",
        "",
        "| | convweights | best eager | | torch.compile | | floor |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in run["results"]:
        rows = {kind: best(result["rows"], kind) for kind in ("ours", "eager", "compile", "floor")}
        ratios = {
            kind: f"{row['median_us'] / rows['ours']['median_us']:.1f}x" if row else "-" for kind, row in rows.items()
        }
        lines.append(
            f"| **{result['name']}**, {result['title']} | {time(rows['ours'])} | {time(rows['eager'])} "
            f"`{rows['eager']['name']}` | {ratios['eager']} | {time(rows['compile'])} | {ratios['compile']} "
            f"| {time(rows['floor'])} |"
        )
    return "\n".join(lines)


def replaced(text: str, content: str) -> str:
    """The text with what stands between the markers replaced."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"chart: README.md must hold {START} and {END}, got neither or one of them")
    return f"{before}{START}\n{content}\n{END}{after}"


def draw(run: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    results = run["results"][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.75 * len(results)), layout="constrained")
    for place, result in enumerate(results):
        floor = best(result["rows"], "floor")
        for offset, kind in ((0.25, "ours"), (0.0, "compile"), (-0.25, "eager")):
            row = best(result["rows"], kind)
            if row is not None and floor is not None:
                times = row["median_us"] / floor["median_us"]
                label = NAMES[kind] if place == 0 else None
                axes.barh(place + offset, times, 0.22, color=COLOURS[kind], label=label)
                axes.text(times, place + offset, f" {times:.3g}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(results)), [result["name"] for result in results])
    axes.set_xlabel("time over that of a copy_ of the same bytes (lower is better)")
    axes.set_title(described(run["conditions"]), fontsize=8)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def section(paths: list[Path]) -> str:
    """What stands between the markers: each run's picture and table."""
    parts = []
    for path in paths:
        parts.append(f"![Times over that of a copy](benchmarks/results/{path.stem}.png)")
        parts.append(table(json.loads(path.read_text())))
    return "\n\n".join(parts)


def main() -> None:
    paths = sorted(RESULTS.glob("transfer*.json"))
    if not paths:
        raise SystemExit(
            "chart: benchmarks/results must hold transfer.json, got none; run benchmarks/transfer.py first"
        )
    README.write_text(replaced(README.read_text(), section(paths)))
    for path in paths:
        draw(json.loads(path.read_text()), path.with_suffix(".png"))


if __name__ == "__main__":
    main()
