"""Pictures of the report."""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fastav.cost import OURS
from fastav.cost.report import TITLES

OWN, OTHER = "#e07b39", "#4c6a92"
_STYLES: dict[str, dict[str, Any]] = {
    "mettle": {"color": OWN, "marker": "o"},
    "lavish": {"color": OTHER, "marker": "s"},
}


class Label(NamedTuple):
    """Words beside a point, in data coordinates."""

    x: float
    y: float
    words: str
    colour: str


def draw_scaling(points: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Bytes kept for backward and a step's time over the frozen forward's, with quartiles, against whatever grows."""
    axes_names = list(dict.fromkeys(point["axis"] for point in points))
    figure = Figure(figsize=(3.1 * len(axes_names), 5.4), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2, len(axes_names), squeeze=False)
    for column, axis in enumerate(axes_names):
        kept, slower = grid[0][column], grid[1][column]
        for method in dict.fromkeys(point["method"] for point in points):
            own = [p for p in points if p["axis"] == axis and p["method"] == method]
            x, style = [p["value"] for p in own], {"label": TITLES[method], **_STYLES[method]}
            if own:
                kept.plot(x, [p["saved"] / 1e6 for p in own], **style)
                medians = [p["over frozen"] for p in own]
                spans = [[m - p["quartiles"][0] for m, p in zip(medians, own, strict=True)],
                         [p["quartiles"][1] - m for m, p in zip(medians, own, strict=True)]]  # fmt: skip
                slower.errorbar(x, medians, spans, capsize=3, **style)
        slower.axhline(1, color="black", linewidth=0.8, linestyle=":")
        slower.set_xlabel(axis)
        for panel in (kept, slower):
            panel.set_xticks(sorted({p["value"] for p in points if p["axis"] == axis}))
            panel.set_ylim(0, 1.12 * panel.get_ylim()[1])
            panel.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("MB kept for backward")
    grid[1][0].set_ylabel("step over frozen forward")
    grid[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def draw_roofline(ops: Sequence[Mapping[str, Any]], copy: float, products: float, path: Path, device: str) -> None:
    """Operations a second against operations a byte, under what copies and products reach here.

    Args:
        ops: of pytest-benchmark's JSON; those whose operations are counted are drawn, which are distill's, a panel a
            call.
        copy: bytes a second, read and written.
        products: operations a second of PyTorch's fastest product.
        path: of the picture.
        device: its name, for the title.
    """
    counted = [one for one in ops if one["operations"]]
    calls = list(dict.fromkeys((one["case"], one["dtype"]) for one in counted))
    figure = Figure(figsize=(1.5 + 6.5 * len(calls), 5.4), dpi=130, layout="constrained")
    figure.suptitle(device, fontsize=10)
    panels = figure.subplots(1, len(calls), squeeze=False)[0]
    knee = products / copy
    intensities = [one["operations"] / one["bytes"] for one in counted]
    reach = min(*intensities, knee) / 2, 4 * max(*intensities, knee)
    labels = [
        _roofline(panel, [one for one in counted if (one["case"], one["dtype"]) == call], copy, products, reach)
        for panel, call in zip(panels, calls, strict=True)
    ]
    for panel, some in zip(panels, labels, strict=True):
        beside(figure, panel, some)
    figure.savefig(path)


def _roofline(
    panel: Axes, ops: Sequence[Mapping[str, Any]], copy: float, products: float, reach: tuple[float, float]
) -> list[Label]:
    """Draw one call's; labels are left for when all is drawn."""
    panel.set_title(f"{ops[0]['case']}, {ops[0]['dtype']}: forward (o), forward + backward (□)", fontsize=10)
    (low, high), knee = reach, products / copy
    panel.plot([low, knee, high], [low * copy / 1e9, products / 1e9, products / 1e9], color="black", linewidth=1)
    panel.set(xscale="log", yscale="log", xlabel="operations a byte that must move", ylabel="GFLOP/s")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    panel.spines[["top", "right"]].set_visible(False)
    panel.annotate(
        f"PyTorch's products, {products / 1e9:.0f} GFLOP/s", (high, products / 1e9), xytext=(0, 3),
        textcoords="offset points", ha="right", fontsize=8,
    )  # fmt: skip
    labels = [Label(low, low * copy / 1e9, f"a copy's {copy / 1e9:.0f} GB/s", "black")]
    for one in ops:
        intensity, rate = one["operations"] / one["bytes"], one["operations"] / one["spread"]["median"] / 1e9
        colour = OWN if one["by"] == "ours" else OTHER
        panel.plot(intensity, rate, "o" if one["direction"] == "forward" else "s", color=colour)
        labels.append(Label(intensity, rate, one["by"], colour))
    return labels


def draw_accuracy(
    methods: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], path: Path, title: str
) -> None:
    """Each method's accuracy, with the spread of its seeds, against what a training step keeps for backward.

    Args:
        methods: of ``accuracy.json``, those whose cost is known.
        others: those whose cost is not, drawn as lines.
        path: of the picture.
        title: above it.
    """
    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    panel = figure.subplots()
    panel.set_title(title, fontsize=10)
    panel.set_xscale("log")
    panel.margins(x=0.3, y=0.15)
    labels = []
    for one in methods:
        x, y = one["saved"] / 1e6, one["accuracy"]
        colour = OWN if one["method"] in OURS else OTHER
        panel.errorbar(x, y, yerr=one["deviation"] or None, fmt="o", color=colour, elinewidth=0.8, capsize=2)
        labels.append(Label(x, y, one["title"], colour))
    for one in others:
        panel.axhline(one["accuracy"], color="#9a9a9a", linewidth=0.8, linestyle="--")
        panel.annotate(
            one["title"], (0.01, one["accuracy"]), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", fontsize=8, color="#6a6a6a",
        )  # fmt: skip
    panel.set(xlabel="MB kept for backward of one clip, logarithmic", ylabel="accuracy, percent")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.spines[["top", "right"]].set_visible(False)
    beside(figure, panel, labels)
    figure.savefig(path)


def beside(figure: Figure, panel: Axes, labels: Sequence[Label]) -> None:
    """Write each label beside its point, as near as other labels and points leave room, with a line where it is far.

    The panel must have all else that it will have: where things lie is settled here.
    """
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    renderer = canvas.get_renderer()
    points = [panel.transData.transform((label.x, label.y)) for label in labels]
    taken: list[Any] = []
    for label, (x, y) in sorted(zip(labels, points, strict=True), key=lambda one: -one[1][1]):
        for step in count():
            down = (step + 1) // 2 * (1 if step % 2 else -1) * 5  # points: 0, then by turns above and below
            text = panel.annotate(
                label.words,
                (label.x, label.y),
                xytext=(12 if abs(down) > 5 else 7, -down),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=label.colour,
                path_effects=[withStroke(linewidth=2, foreground="white")],
                arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.5} if abs(down) > 5 else None,
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).padded(1)  # an annotation's own holds its line too
            if not any(box.overlaps(other) for other in taken) and not any(
                box.x0 - 4 < px < box.x1 + 4 and box.y0 - 4 < py < box.y1 + 4 for px, py in points if (px, py) != (x, y)
            ):
                break
            text.remove()
        taken.append(box)
