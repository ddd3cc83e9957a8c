"""The demo's pictures: learning curves, Mettle's confusion matrix, and sheets of test clips and scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from examples.stamps.examples import Examples
from examples.stamps.exercises import METTLE, MOLT, Exercise
from examples.stamps.report import Runs
from examples.stamps.scenes import SEGMENTS
from examples.stamps.training import predict

COLOURS = ("#777777", "#d08a00", "#9a7fc0", "#0b62a4", "#3a9a4a")
RIGHT, WRONG, PLAIN = "#0a7a2f", "#c0182a", "#555555"
SHOWN = 6  # clips or scenes on a sheet


def draw(exercises: Mapping[str, Exercise], runs: Runs, names: Sequence[str], folder: Path) -> list[Path]:
    """Write the pictures as PNG into ``folder``.

    Args:
        exercises: by name; "localisation", "parsing" and "segmentation, single" have pictures of their own.
        runs: every exercise's and method's runs; the first seed's models are drawn.
        names: of the classes, without background.
        folder: must be there.
    """

    def said(exercise: str, method: str = METTLE) -> dict[str, Tensor]:
        return predict(runs[exercise][method][0].model, exercises[exercise].examples["test"])

    test = {name: exercise.examples["test"] for name, exercise in exercises.items()}
    pictures: dict[str, Callable[[], Figure]] = {
        "learning_curves.png": lambda: _learning_curves(list(exercises.values()), runs),
        "confusion_matrix.png": lambda: _confusion(
            said("localisation")["labels"], test["localisation"].targets["labels"], [*names, "background"]
        ),
        "test_clips.png": lambda: _clips(test["localisation"], said("localisation"), said("parsing"), names),
        "test_scenes.png": lambda: _scenes(
            test["segmentation, single"],
            {method: said("segmentation, single", method)["masks"] for method in (METTLE, MOLT)},
        ),
    }
    for name, make in tqdm(pictures.items(), "drawing", leave=False):
        make().savefig(folder / name, dpi=110, bbox_inches="tight")
    return [folder / name for name in pictures]


def _learning_curves(exercises: Sequence[Exercise], runs: Runs) -> Figure:
    figure = Figure(figsize=(10, 3 * len(exercises)))
    grid = figure.subplots(len(exercises), 2, squeeze=False)
    methods = list(dict.fromkeys(name for exercise in exercises for name in exercise.methods))
    for (loss, monitored), exercise in zip(grid, exercises, strict=True):
        for method, some in runs[exercise.name].items():
            for number, run in enumerate(some):
                epochs = np.linspace(0, 100, len(run.losses) + 1)[1:]
                style = {"color": COLOURS[methods.index(method)], "label": None if number else method, "alpha": 0.8}
                loss.plot(epochs, run.losses, **style)
                monitored.plot(epochs, run.monitored, **style)
        monitor = next(iter(runs[exercise.name].values()))[0].model.task.monitor
        loss.set(title=exercise.name, ylabel="training loss", yscale="log")
        monitored.set(title=f"{exercise.name}: {monitor} on validation, %")
        for axes in (loss, monitored):
            axes.grid(alpha=0.3)
            axes.set(xlabel="training done, %")
    lines = {str(line.get_label()): line for axes in grid.flat for line in axes.lines}
    figure.legend([lines[method] for method in methods], methods, loc="upper center", ncols=len(methods), fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    return figure


def _confusion(predicted: Tensor, labels: Tensor, names: Sequence[str]) -> Figure:
    """Rows are true classes, shares of each in percent."""
    size = len(names)
    counts = torch.bincount((labels * size + predicted).flatten(), minlength=size * size).view(size, size)
    share = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    figure = Figure(figsize=(11, 10))
    axes: Axes = figure.subplots()
    image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(size), names, rotation=90)
    axes.set_yticks(range(size), [f"{name} ({n})" for name, n in zip(names, counts.sum(1).tolist(), strict=True)])
    axes.set(xlabel="predicted", ylabel="true (seconds)", title="Event localisation, Mettle on the test split")
    for row, column in (share >= 5).nonzero().tolist():
        value = share[row, column].item()
        axes.text(
            column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 50 else "black"
        )
    figure.colorbar(image, ax=axes, label="% of the true class", fraction=0.04)
    return figure


def _clips(
    test: Examples, localized: Mapping[str, Tensor], parsed: Mapping[str, Tensor], names: Sequence[str]
) -> Figure:
    """The first test clips: frames, waveform, and every second's truth and predictions."""
    figure = Figure(figsize=(14, 3.6 * SHOWN))
    grid = figure.subplots(SHOWN, 1)
    events = [*names, "-"]
    for index, axes in enumerate(grid):
        clip = test.split.clips[index]
        axes.imshow(_strip(clip.frames), extent=(0, SEGMENTS, 1.0, 2.0), aspect="auto")
        wave = clip.sound.view(-1, 200).abs().amax(1).numpy()
        seconds = np.linspace(0, SEGMENTS, len(wave))
        axes.fill_between(seconds, 0.8 - 0.15 * wave, 0.8 + 0.15 * wave, color="#555555", linewidth=0)
        rows = {
            "seen": (clip.seen, None),
            "parsed as seen": (parsed["visual_events"][index], clip.seen),
            "heard": (clip.heard, None),
            "parsed as heard": (parsed["audio_events"][index], clip.heard),
            "event": (clip.labels, None),
            "localised": (localized["labels"][index], clip.labels),
        }
        for row, (title, (values, truth)) in enumerate(rows.items()):
            y = 0.53 - 0.13 * row
            axes.text(-0.05, y, title, ha="right", va="center", fontsize=8)
            for second, value in enumerate(values):
                text = events[value] if value.ndim == 0 else _named(value, names)
                colour = PLAIN
                if truth is not None:
                    colour = RIGHT if torch.equal(value, truth[second]) else WRONG
                size = 7 if len(text) < 15 else 5  # two long names in one second
                axes.text(second + 0.5, y, text, ha="center", va="center", fontsize=size, color=colour)
        axes.set(xlim=(-1.0, SEGMENTS), ylim=(-0.2, 2.0))
        axes.axis("off")
    figure.suptitle("Test clips and what Mettle says of them: green is right", y=0.9)
    return figure


def _scenes(test: Examples, masks: Mapping[str, Tensor]) -> Figure:
    """The first test scenes, twins next to each other: frames, what sounds, and the methods' masks."""
    rows = {"": None, "what sounds": test.targets["masks"], **masks}
    figure = Figure(figsize=(12, 1.6 * SHOWN))
    grid = figure.subplots(SHOWN, len(rows))
    for index, line in enumerate(grid):
        frames = test.split.clips[index]["frames"][[0, -1]]
        for axes, (title, shown) in zip(line, rows.items(), strict=True):
            image = frames.float()
            if shown is not None:
                mask = shown[index][[0, -1], None].float()
                tint = torch.tensor([255.0, 60.0, 30.0])[:, None, None]
                image = image * (1 - 0.65 * mask) * (0.5 + 0.5 * mask) + tint * 0.65 * mask
            axes.imshow(_strip(image.to(torch.uint8)))
            axes.axis("off")
            if index == 0:
                axes.set_title(title or "first and last frame", fontsize=9)
    figure.suptitle("Test scenes in pairs with the same frames and another sound", fontsize=11)
    figure.tight_layout()
    return figure


def _strip(frames: Tensor) -> np.ndarray:
    """Frames (T, 3, H, W) side by side, (H, T W, 3)."""
    return frames.permute(2, 0, 3, 1).flatten(1, 2).numpy()


def _named(flags: Tensor, names: Sequence[str]) -> str:
    return ", ".join(names[label] for label in flags.nonzero().flatten()) or "-"
