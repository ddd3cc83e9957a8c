"""Pictures of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fastav.cost import OURS
from fastav.cost.report import TITLES

_STYLES: dict[str, dict[str, Any]] = {
    "mettle": {"color": "#e07b39", "marker": "o"},
    "lavish": {"color": "#4c6a92", "marker": "s"},
}


def draw_scaling(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bytes kept for backward and a step's time over the frozen forward's, against whatever grows."""
    axes_names = list(dict.fromkeys(point["axis"] for point in points))
    figure = Figure(figsize=(3.1 * len(axes_names), 5.2), dpi=130, layout="constrained")
    grid = figure.subplots(2, len(axes_names), squeeze=False)
    rows = (("saved", 1e-6, "MB kept for backward"), ("over frozen", 1.0, "step over frozen forward"))
    for column, axis in enumerate(axes_names):
        for row, (key, scale, label) in enumerate(rows):
            panel = grid[row][column]
            for method in dict.fromkeys(point["method"] for point in points):
                own = [p for p in points if p["axis"] == axis and p["method"] == method]
                if own:
                    x, y = [p["value"] for p in own], [p[key] * scale for p in own]
                    panel.plot(x, y, label=TITLES[method], **_STYLES[method])
            panel.set_xlabel(axis if row else "")
            panel.set_xticks(sorted({p["value"] for p in points if p["axis"] == axis}))
            panel.set_ylim(0, 1.12 * panel.get_ylim()[1])
            if key == "over frozen":
                panel.axhline(1, color="black", linewidth=0.8, linestyle=":")
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(label)
    grid[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def draw_roofline(ops: Sequence[Mapping[str, Any]], copy: float, products: float, path: Path) -> None:
    """Of ``distill``, operations a second against operations a byte, under what copies and products reach here."""
    figure = Figure(figsize=(7, 4.6), dpi=130, layout="constrained")
    panel = figure.subplots()
    counted = [one for one in ops if one["operations"]]
    intensities = [one["operations"] / one["bytes"] for one in counted]
    knee = products / copy
    low, high = min(*intensities, knee) / 6, 4 * max(*intensities, knee)
    panel.plot([low, knee, high], [low * copy / 1e9, products / 1e9, products / 1e9], color="black", linewidth=1)
    panel.annotate(f"copy, {copy / 1e9:.0f} GB/s", (low * 1.4, low * 1.2 * copy / 1e9), fontsize=8)
    panel.annotate(f"PyTorch's products, {products / 1e9:.0f} GFLOP/s", (knee, 1.06 * products / 1e9), fontsize=8)
    colours = {by: f"C{i}" for i, by in enumerate(dict.fromkeys(one["by"] for one in counted))}
    for one, intensity in zip(counted, intensities, strict=True):
        rate = one["operations"] / one["stats"]["median"] / 1e9
        whole = one["direction"] != "forward"
        panel.plot(intensity, rate, marker="s" if whole else "o", color=colours[one["by"]], linestyle="",
                   markersize=9 if one["by"] == "ours" else 6)  # fmt: skip
    for by, colour in colours.items():
        panel.plot([], [], "o", color=colour, label=by)
    for marker, direction in (("o", "forward"), ("s", "forward + backward")):
        panel.plot([], [], marker, color="black", markerfacecolor="none", label=direction)
    panel.set(xscale="log", yscale="log", xlabel="operations a byte that must move", ylabel="GFLOP/s")
    panel.legend(frameon=False, fontsize=8, loc="lower right")
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def draw_accuracy(methods: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Each method's accuracy, with the spread of its seeds, against what a training step keeps for backward."""
    figure = Figure(figsize=(7, 4.6), dpi=130, layout="constrained")
    panel = figure.subplots()
    for one in methods:
        x, y = one["saved"] / 1e6, one["accuracy"]
        colour = "#e07b39" if one["method"] in OURS else "#4c6a92"
        panel.errorbar(x, y, yerr=one["deviation"], fmt="o", color=colour, capsize=3)
        panel.annotate(one["title"], (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8)
    panel.set(xscale="log", xlabel="MB a training step keeps for backward, one clip", ylabel="accuracy, percent")
    panel.margins(x=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
