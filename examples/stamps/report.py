"""The demo's tables: scores, leads clip by clip, and what training costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from examples.stamps.exercises import METTLE, MOLT, MUTED, POOLED, Exercise
from examples.stamps.training import Run

#: Every method's runs, by exercise.
Runs = Mapping[str, Mapping[str, Sequence[Run]]]

LEADS = ((METTLE, POOLED), (MOLT, POOLED), (MOLT, METTLE), (METTLE, MUTED))


def scores(exercises: Sequence[Exercise], runs: Runs) -> str:
    """One table of all methods and exercises on the test splits: means over seeds, with standard deviations."""
    methods = dict.fromkeys(name for exercise in exercises for name in exercise.methods)
    rows = []
    for exercise in exercises:
        of = runs[exercise.name]
        for heading, key in exercise.shown.items():
            nothing = f"{100 * exercise.chance[1][key].item():.1f}"
            found = (spread([run.scores["test"][key] for run in of[one]]) if one in of else "" for one in methods)
            rows.append([exercise.name, heading, nothing, *found])
    head = ["exercise", "score", "nothing learned", *methods]
    return _table(head, rows)


def leads(exercises: Sequence[Exercise], runs: Runs) -> str:
    """Who leads whom: the mean over test clips of the difference, and its standard error over clips.

    Each clip's score is the mean over seeds first, so that the same clips are compared, pair by pair. Twins, which show
    the same frames, count as one.
    """
    head = ["exercise", "score of a clip", *(f"{one} over {other}" for one, other in LEADS)]
    rows = []
    for exercise in exercises:
        of = {name: torch.stack([run.of_clips for run in some]).mean(0) for name, some in runs[exercise.name].items()}
        row = [exercise.name, next(iter(runs[exercise.name].values()))[0].model.task.monitor]
        for one, other in LEADS:
            if one not in of or other not in of:
                row.append("")
                continue
            differences = of[one] - of[other]
            if exercise.twins:
                differences = differences.unflatten(0, (-1, 2)).mean(1)
            row.append(lead(differences[~differences.isnan()]))
        rows.append(row)
    return _table(head, rows)


def lead(differences: Tensor) -> str:
    """The mean of differences, one a clip, and its standard error."""
    return f"{differences.mean():+.1f} ± {differences.std() / len(differences) ** 0.5:.1f}"


def costs(exercises: Sequence[Exercise], runs: Runs) -> str:
    """Trainable parameters, bytes saved for backward and seconds an epoch."""
    head = ["exercise", "method", "trainable", "saved for backward", "s / epoch", "epochs"]
    rows = []
    for exercise in exercises:
        for method, some in runs[exercise.name].items():
            seconds = statistics.median(run.seconds_per_epoch for run in some)
            saved = f"{some[0].saved_bytes / 1e6:.2f} MB/clip"
            epochs = str(len(some[0].losses))
            rows.append([exercise.name, method, f"{some[0].trainable:,d}", saved, f"{seconds:.2f}", epochs])
    return _table(head, rows)


def everything(exercises: Sequence[Exercise], runs: Runs) -> dict[str, dict[str, dict[str, dict[str, list[float]]]]]:
    """All scores of all runs in percent: by exercise, method, split and score, one number a seed."""
    return {
        exercise.name: {
            method: {
                split: {key: [run.scores[split][key] for run in some] for key in found}
                for split, found in some[0].scores.items()
            }
            for method, some in runs[exercise.name].items()
        }
        for exercise in exercises
    }


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in lines
    )


def spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation if there are several."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"
