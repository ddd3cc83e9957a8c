"""Costs for people: a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
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
    head = ["method", "clips", *(f"{part} ms" for part in PARTS), *(f"{_WORDS[place]} MB" for place in PLACES)]
    return aligned(head, rows, markdown=markdown)


def notes(costs: Sequence[Cost]) -> list[str]:
    """Why columns are missing."""
    why = {cost.no_joules for cost in costs} - {""}
    return [f"Energy: {'; '.join(sorted(why))}."] if why else []


def draw_costs(costs: Sequence[Cost], path: str | Path, title: str) -> None:
    """Draw where a clip's memory and time go: a row a method, left what is kept and the peak, right the step.

    Raises:
        ImportError: matplotlib is missing.
    """
    figures = load_optional("matplotlib.figure", by="pictures of costs", extra="plots")
    figure = figures.Figure(figsize=(11, 2.1 + 0.36 * len(costs)), dpi=130, layout="constrained")
    memory, time = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title, fontsize=11)
    one = all(cost.clips == 1 for cost in costs)
    names = [TITLES[c.method] + ("" if one else f", {c.clips} clip{'s' if c.clips > 1 else ''}") for c in costs]
    kept = {_WORDS[p]: [c.saved[p] / c.clips / 1e6 for c in costs] for p in PLACES}
    _stack(memory, names, kept, [_COLOURS[p] for p in PLACES])
    peaks = [(i, c.peak.bytes / c.clips / 1e6) for i, c in enumerate(costs)]
    memory.plot([x for _, x in peaks], [i for i, _ in peaks], "k|", markersize=12, label="peak of the step")
    memory.set_xlabel("MB kept for backward, a clip")
    spent = {p: [c.parts[p] / c.clips * 1e3 for c in costs] for p in PARTS}
    _stack(time, names, spent, [_COLOURS[p] for p in PARTS])
    if len({cost.clips for cost in costs}) == 1:
        frozen = statistics.median(cost.frozen.median / cost.clips for cost in costs) * 1e3
        time.axvline(frozen, color="black", linewidth=0.8, linestyle=":", label="frozen forward alone")
    time.set_xlabel("ms of a training step, a clip")
    for axes in (memory, time):
        axes.spines[["top", "right"]].set_visible(False)
        below = -0.45 / (0.75 + 0.36 * len(costs))  # inches below the axes, over their height
        axes.legend(fontsize=7.5, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, below))
    memory.invert_yaxis()
    figure.savefig(path)


def megabytes(size: int | None) -> str:
    """Bytes in megabytes, a dash where nobody knows."""
    return "-" if size is None else f"{size / 1e6:.1f}"


def _stack(axes: Any, names: Sequence[str], parts: dict[str, list[float]], colours: Sequence[str]) -> None:
    left = [0.0] * len(names)
    for (label, values), colour in zip(parts.items(), colours, strict=True):
        axes.barh(range(len(names)), values, left=left, color=colour, label=label, height=0.7)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_yticks(range(len(names)), names)
