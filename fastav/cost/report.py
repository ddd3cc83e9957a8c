"""Costs for people: a table and a picture."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastav.cost.measure import Cost
from fastav.cost.step import PARTS, PLACES
from fastav.cost.tables import aligned
from fastav.optional import load_optional

#: What the table and the pictures call the methods.
TITLES = {
    "mettle": "Mettle",
    "molt": "MoLT",
    "frozen": "frozen features",
    "ladder": "ladder side tuning",
    "lora": "LoRA",
    "naive": "naive adapters",
    "lavish": "LAVISH",
    "dg-sct": "DG-SCT",
    "full": "full fine-tuning",
}

_COLOURS = {
    "backbones": "#4c6a92",
    "taps": "#8fb8de",
    "side branch": "#e07b39",
    "method": "#e07b39",
    "head": "#9a9a9a",
    "backward": "#b5485d",
    "update": "#d9c27e",
}
#: Of a step's time, where the name of a part does not say all.
_PARTS = {"backbones": "backbones with what stands in them"}
_WORDS = {
    "taps": "taps",
    "backbones": "inside the backbones",
    "method": "the method's own",
    "head": "head",
}


def cost_table(costs: Sequence[Cost], *, markdown: bool = False) -> str:
    """One row a method: what it trains, what it keeps, what it takes."""
    rows = [
        (
            TITLES[cost.method],
            f"{cost.clips}",
            f"{cost.reached} of {cost.blocks}",
            f"{cost.trainable:,}",
            f"{cost.head:,}",
            f"{100 * cost.share:.2f}",
            megabytes(cost.saved_bytes),
            megabytes(cost.peak.bytes),
            megabytes(cost.peak.reserved),
            megabytes(cost.forward_peak.bytes),
            f"{cost.step.median * 1e3:.0f}",
            f"{cost.over_frozen.median:.2f}",
            f"{cost.over_frozen.iqr:.2f}",
            f"{cost.forward.median * 1e3:.0f}",
            f"{cost.clips_per_second:.2f}",
            "-" if cost.joules is None else f"{cost.joules:.1f}",
        )
        for cost in costs
    ]
    head = ("method", "clips", "blocks passed", "trainable", "head", "% of all", "saved MB", "peak MB", "reserved MB",
            "forward peak MB", "step ms", "of frozen", "IQR", "forward ms", "clips/s", "J/step")  # fmt: skip
    # What is nowhere to be had is no column.
    kept = [i for i in range(len(head)) if any(row[i] != "-" for row in rows)]
    return aligned([head[i] for i in kept], [[row[i] for i in kept] for row in rows], markdown=markdown)


def parts_table(costs: Sequence[Cost], *, markdown: bool = False) -> str:
    """Where a step's time goes, in milliseconds, and what is kept for backward, in megabytes."""
    rows = [
        (
            TITLES[cost.method],
            f"{cost.clips}",
            *(f"{cost.parts[part] * 1e3:.1f}" for part in PARTS),
            *(megabytes(cost.saved[place]) for place in PLACES),
        )
        for cost in costs
    ]
    head = [
        "method",
        "clips",
        *(f"{_PARTS.get(part, part)} ms" for part in PARTS),
        *(f"{_WORDS[place]} MB" for place in PLACES),
    ]
    return aligned(head, rows, markdown=markdown)


def notes(costs: Sequence[Cost]) -> list[str]:
    """By what fastav's ops were served, and why columns are missing."""
    ops = sorted({cost.ops for cost in costs if cost.ops})
    served = [f"fastav's own ops by {' or '.join(ops)}."] if ops else []
    why = {cost.no_joules for cost in costs} - {""}
    return served + ([f"Energy: {'; '.join(sorted(why))}."] if why else [])


def draw_costs(
    costs: Sequence[Cost], path: str | Path, title: str, *, where: str, absent: Mapping[str, str] | None = None
) -> None:
    """Draw where a clip's memory and time go: a row a method, left what is kept and the peak, right the step.

    Args:
        costs: of the methods.
        path: of the picture.
        title: above it.
        where: device, versions and date, below the title.
        absent: what the others are called, and why they were not measured: rows without bars.

    Raises:
        ImportError: matplotlib is missing.
    """
    figures = load_optional("matplotlib.figure", by="pictures of costs", extra="plots")
    lacking = absent or {}
    rows = len(costs) + len(lacking)
    figure = figures.Figure(figsize=(11, 2.4 + 0.36 * rows), dpi=130, layout="constrained")
    memory, time = figure.subplots(1, 2, sharey=True)
    figure.suptitle(f"{title}\n{where}", fontsize=10)
    one = all(cost.clips == 1 for cost in costs)
    names = [TITLES[c.method] + ("" if one else f", {c.clips} clip{'s' if c.clips > 1 else ''}") for c in costs]
    kept = {_WORDS[p]: [c.saved[p] / c.clips / 1e6 for c in costs] for p in PLACES}
    _stack(memory, kept, [_COLOURS[p] for p in PLACES])
    peaks = [c.peak.bytes / c.clips / 1e6 for c in costs]
    memory.plot(peaks, range(len(costs)), "k|", markersize=12, label="peak of the step")
    memory.set_xlabel("MB a clip: bars are kept for backward")
    sums = [c.saved_bytes / c.clips / 1e6 for c in costs]
    _write(memory, [max(pair) for pair in zip(sums, peaks, strict=True)],
           [f"{_three(a)}, peak {_three(b)}" for a, b in zip(sums, peaks, strict=True)])  # fmt: skip
    spent = {_PARTS.get(p, p): [c.parts[p] / c.clips * 1e3 for c in costs] for p in PARTS}
    _stack(time, spent, [_COLOURS[p] for p in PARTS])
    steps = [c.step.median / c.clips * 1e3 for c in costs]  # parts are medians too, and add up to nearly that
    ends = [max(step, sum(c.parts.values()) / c.clips * 1e3) for step, c in zip(steps, costs, strict=True)]
    _write(time, ends, [_three(step) for step in steps])
    if len({cost.clips for cost in costs}) == 1:
        frozen = statistics.median(cost.frozen.median / cost.clips for cost in costs) * 1e3
        time.axvline(frozen, color="black", linewidth=0.8, linestyle=":", label="frozen forward alone")
    time.set_xlabel("ms of a training step, a clip")
    for number, reason in enumerate(lacking.values(), len(costs)):
        words = textwrap.shorten(reason, 70, placeholder=" ...")
        memory.text(0, number, f"  not measured: {words}", va="center", fontsize=8, style="italic", color="#6a6a6a")
    memory.set_yticks(range(rows), [*names, *lacking])
    for axes in (memory, time):
        axes.spines[["top", "right"]].set_visible(False)
        below = -0.45 / (0.75 + 0.36 * rows)  # inches below the axes, over their height
        axes.legend(fontsize=7.5, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, below))
    memory.set_ylim(rows - 0.4, -0.6)
    figure.savefig(path)


def megabytes(size: int | None) -> str:
    """Bytes in megabytes, a dash where nobody knows."""
    return "-" if size is None else f"{size / 1e6:.1f}"


def _stack(axes: Any, parts: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    left = [0.0] * len(next(iter(parts.values())))
    for (label, values), colour in zip(parts.items(), colours, strict=True):
        axes.barh(range(len(left)), values, left=left, color=colour, label=label, height=0.7)
        left = [a + b for a, b in zip(left, values, strict=True)]


def _write(axes: Any, ends: Sequence[float], words: Sequence[str]) -> None:
    """Numbers where the bars end, with room for them."""
    for number, (end, said) in enumerate(zip(ends, words, strict=True)):
        axes.annotate(said, (end, number), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 1.3 * max(ends))


def _three(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
