"""The demo's pictures: learning curves, Mettle's confusion matrix, and a sheet of test clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from examples.stamps.scenes import SEGMENTS
from examples.stamps.taps import Split
from examples.stamps.training import Run

COLOURS = ("#777777", "#d08a00", "#0b62a4")
RIGHT, WRONG, PLAIN = "#0a7a2f", "#c0182a", "#555555"


def draw(runs: Mapping[str, Sequence[Run]], test: Split, predicted: Tensor, folder: Path) -> list[Path]:
    """Write the pictures as PNG into ``folder``.

    Args:
        runs: every method's runs.
        test: the test split.
        predicted: (num_clips, 10), Mettle's labels for it.
        folder: must be there.
    """
    names = [*test.clips.material.class_names, "background"]
    pictures = {
        "learning_curves.png": _learning_curves(runs),
        "confusion_matrix.png": _confusion(predicted, test.labels, names),
        "test_clips.png": _sheet(test, predicted, names),
    }
    for name, figure in tqdm(pictures.items(), "drawing", leave=False):
        figure.savefig(folder / name, dpi=110, bbox_inches="tight")
    return [folder / name for name in pictures]


def _learning_curves(runs: Mapping[str, Sequence[Run]]) -> Figure:
    figure = Figure(figsize=(10, 4))
    loss, accuracy = figure.subplots(1, 2)
    for (name, some), colour in zip(runs.items(), COLOURS, strict=True):
        for number, run in enumerate(some):
            epochs = np.linspace(0, 100, len(run.losses) + 1)[1:]
            label = name if number == 0 else None
            loss.plot(epochs, run.losses, color=colour, label=label, alpha=0.8)
            accuracy.plot(epochs, run.accuracies, color=colour, label=label, alpha=0.8)
    loss.set(xlabel="training done, %", ylabel="training loss (cross-entropy)", yscale="log")
    accuracy.set(xlabel="training done, %", ylabel="validation accuracy, %")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    accuracy.legend(loc="lower right")
    figure.tight_layout()
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
    axes.set(xlabel="predicted", ylabel="true (seconds)", title="Mettle on the test split")
    for row, column in (share >= 5).nonzero().tolist():
        value = share[row, column].item()
        axes.text(
            column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 50 else "black"
        )
    figure.colorbar(image, ax=axes, label="% of the true class", fraction=0.04)
    return figure


def _sheet(test: Split, predicted: Tensor, names: Sequence[str], count: int = 8) -> Figure:
    """The first test clips: frames, waveform, and what is seen, heard, true and predicted in each second."""
    figure = Figure(figsize=(14, 3.3 * count))
    grid = figure.subplots(count, 1)
    for axes, index in zip(grid, range(count), strict=True):
        clip = test.clips[index]
        strip = clip.frames.permute(2, 0, 3, 1).flatten(1, 2).numpy()  # (H, 10 W, 3)
        axes.imshow(strip, extent=(0, SEGMENTS, 1.0, 2.0), aspect="auto")
        wave = clip.sound.view(-1, 200).abs().amax(1).numpy()
        seconds = np.linspace(0, SEGMENTS, len(wave))
        axes.fill_between(seconds, 0.8 - 0.15 * wave, 0.8 + 0.15 * wave, color="#555555", linewidth=0)
        rows = {
            "seen": [_named(flags, names) for flags in clip.seen],
            "heard": [_named(flags, names) for flags in clip.heard],
            "true": [names[label] for label in clip.labels],
            "predicted": [names[label] for label in predicted[index]],
        }
        hits = clip.labels == predicted[index]
        for row, (title, labels) in enumerate(rows.items()):
            y = 0.5 - 0.16 * row
            axes.text(-0.05, y, title, ha="right", va="center", fontsize=8)
            for second, text in enumerate(labels):
                colour = PLAIN if title != "predicted" else (RIGHT if hits[second] else WRONG)
                size = 7 if len(text) < 15 else 5  # two long names in one second
                axes.text(second + 0.5, y, text, ha="center", va="center", fontsize=size, color=colour)
        axes.set(xlim=(-0.7, SEGMENTS), ylim=(-0.1, 2.0))
        axes.axis("off")
    figure.suptitle(
        "Test clips: a second's event is what is both seen and heard; predictions in green are right", y=0.9
    )
    return figure


def _named(flags: Tensor, names: Sequence[str]) -> str:
    return ", ".join(names[label] for label in flags.nonzero().flatten()) or "-"
