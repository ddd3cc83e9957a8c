"""The demo's table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from examples.stamps.taps import Split
from examples.stamps.training import Run


def table(runs: Mapping[str, Sequence[Run]], splits: Mapping[str, Split]) -> str:
    """One Markdown table of all methods: means over seeds, with standard deviations where there are several."""
    head = ["method", "test accuracy"]
    if "cross" in splits:
        head.append("cross-source")
    head += ["foreground", "mismatched recall", "background recall", "trainable", "saved for backward", "s / epoch"]
    rows = [_constant_row(splits, len(head))]
    for name, some in runs.items():
        row = [name, _mean(run.scores["test"]["accuracy"] for run in some)]
        if "cross" in splits:
            row.append(_mean(run.scores["cross"]["accuracy"] for run in some))
        for key in ("foreground_accuracy", "mismatched_recall", "background_recall"):
            row.append(_mean(run.scores["test"][key] for run in some))
        seconds = statistics.median(run.seconds_per_epoch for run in some)
        rows.append([*row, f"{some[0].trainable:,d}", _bytes(some[0].saved_bytes), f"{seconds:.2f}"])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in lines
    )


def _constant_row(splits: Mapping[str, Split], columns: int) -> list[str]:
    """What saying "background" every time would score: the line to be above."""
    row = ["always background"]
    for key in ("test", "cross"):
        if key in splits:
            background = splits[key].labels == splits[key].clips.material.num_classes
            row.append(f"{100 * background.float().mean():.1f}")
    return row + ["0.0", "100.0", "100.0"] + ["-"] * (columns - len(row) - 3)


def _mean(values: Iterable[float]) -> str:
    values = list(values)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _bytes(number: float) -> str:
    return f"{number / 1e6:.2f} MB/clip"
