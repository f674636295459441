"""Writes README's tables of benchmarks, and a picture beside each result, from the committed JSON."""

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
    threads = (
        ""
        if conditions["kind"] == "cuda"
        else f", {conditions['threads']} threads unless said otherwise, {conditions['simd']}"
    )
    note = f"; {conditions['note']}" if "note" in conditions else ""
    return (
        f"{conditions['device']}{threads}; torch {conditions['versions']['torch']}, commit {conditions['commit']}, "
        f"{conditions['date']}{note}"
    )


def time(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['median_us'] / 1000:.2f} ms" if row["median_us"] >= 1000 else f"{row['median_us']:.0f} us"


def table(run: dict[str, Any]) -> str:
    operation, _, what = best(run["results"][0]["rows"], "floor")["name"].partition(" ")
    lines = [
        f"{described(run['conditions'])}. Medians; *floor* is `{operation}` {what}.",
        "",
        "| | convweights | best eager | | torch.compile | | floor |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in run["results"]:
        rows = {kind: best(result["rows"], kind) for kind in ("ours", "eager", "compile", "floor")}
        ratios = {
            kind: f"{row['median_us'] / rows['ours']['median_us']:.1f}x" if row else "-" for kind, row in rows.items()
        }
        eager = rows["eager"]
        named = f" `{eager['name']}`" if eager else ""
        lines.append(
            f"| **{result['name']}**, {result['title']} | {time(rows['ours'])} | {time(eager)}{named} "
            f"| {ratios['eager']} | {time(rows['compile'])} | {ratios['compile']} | {time(rows['floor'])} |"
        )
        for row in result["rows"]:
            if row["kind"] == "variant":
                ratio = f"{eager['median_us'] / row['median_us']:.1f}x" if eager else "-"
                lines.append(f"| by {row['name']} | {time(row)} | | {ratio} | | | |")
            if row["kind"] == "bare":
                ratio = f"{row['median_us'] / rows['ours']['median_us']:.1f}x"
                lines.append(f"| against {row['name']} | | {time(row)} | {ratio} | | | |")
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
    labelled: set[str] = set()
    for place, result in enumerate(results):
        floor = best(result["rows"], "floor")
        for offset, kind in ((0.25, "ours"), (0.0, "compile"), (-0.25, "eager")):
            row = best(result["rows"], kind)
            if row is not None and floor is not None:
                times = row["median_us"] / floor["median_us"]
                label = None if kind in labelled else NAMES[kind]
                labelled.add(kind)
                axes.barh(place + offset, times, 0.22, color=COLOURS[kind], label=label)
                axes.text(times, place + offset, f" {times:.3g}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(results)), [result["name"] for result in results])
    if results and max(text.get_position()[0] for text in axes.texts) > 10:
        axes.set_xscale("log")
    axes.set_xlabel(f"time over that of a {floor['name']} (lower is better)")
    axes.set_title(described(run["conditions"]).replace("; ", "\n"), fontsize=8)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def section(paths: list[Path]) -> str:
    """What stands between the markers: each run's picture and table."""
    parts = []
    for path in paths:
        parts.append(f"![Times over the floor's](benchmarks/results/{path.stem}.png)")
        parts.append(table(json.loads(path.read_text())))
    return "\n\n".join(parts)


def committed() -> list[Path]:
    """The results, those of one verb together, the CPU's first."""
    return sorted(RESULTS.glob("*.json"), key=lambda path: (path.stem.partition("-")[0], path.stem))


def main() -> None:
    paths = committed()
    if not paths:
        raise SystemExit("chart: benchmarks/results must hold results, got none; run benchmarks/transfer.py first")
    README.write_text(replaced(README.read_text(), section(paths)))
    for path in paths:
        draw(json.loads(path.read_text()), path.with_suffix(".png"))


if __name__ == "__main__":
    main()
