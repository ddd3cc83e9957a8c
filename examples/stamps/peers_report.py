"""Accuracy beside cost: the runs of all methods as a table, and as a file for ``python -m benchmarks.report``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from examples.stamps.exercises import METTLE, MOLT
from examples.stamps.report import lead
from fastav.cost import Cost
from fastav.cost.report import TITLES
from fastav.cost.tables import aligned

#: What the table calls each score, and the score, a key of the task's metric.
SCORES = {"accuracy": "accuracy", "of foreground": "foreground_accuracy", "mismatched recall": "mismatched_recall"}


@dataclass(frozen=True)
class Outcome:
    """What one run gave.

    Attributes:
        method: which.
        rate: its learning rate.
        seed: of its weights and the clips' order.
        monitored: each epoch's score on validation, in percent; the best one chooses the epoch.
        test: that epoch's scores on the test split, in percent.
        of_clips: each test clip's own accuracy.
        trainable: parameters, without the head's.
        head: the head's.
        losses: of each epoch in training.
        seconds_per_epoch: median.
        where: device, versions, date and commit of the run.
    """

    method: str
    rate: float
    seed: int
    monitored: list[float]
    test: dict[str, float]
    of_clips: list[float]
    trainable: int
    head: int
    losses: list[float]
    seconds_per_epoch: float
    where: str

    @property
    def validation(self) -> float:
        """The best epoch's score on validation, in percent."""
        return max(self.monitored)

    @property
    def epoch(self) -> int:
        """The best one, counted from one; of several the last."""
        return max(number for number, score in enumerate(self.monitored, 1) if score == self.validation)


def write_accuracy(
    folder: Path,
    runs: Mapping[str, Sequence[Outcome]],
    costs: Mapping[str, Cost],
    nothing: tuple[str, Mapping[str, float]],
    notes: str,
) -> tuple[Path, Path]:
    """Write ``accuracy.md``, and ``accuracy.json`` with the points of the picture of accuracy against memory.

    Args:
        folder: where to.
        runs: by method, with the learning rate that was chosen.
        costs: of a training step of one clip, of the methods that were measured.
        nothing: what knows nothing of the clips, and its scores on the test split, in percent.
        notes: how both were measured.
    """
    title, scores = nothing
    rows = [(title, *(f"{scores[key]:.1f}" for key in SCORES.values()), *["-"] * 11)]
    points, beside = [], [{"title": title, "accuracy": scores["accuracy"]}]
    of_clips = {method: torch.tensor([run.of_clips for run in some]).mean(0) for method, some in runs.items()}
    for method, some in runs.items():
        cost = costs.get(method)
        accuracy = [run.test["accuracy"] for run in some]
        title = TITLES.get(method, method)
        rows.append(
            (
                title,
                *(_spread([run.test[key] for run in some]) for key in SCORES.values()),
                *(
                    lead(of_clips[one] - of_clips[method]) if one in of_clips and one != method else "-"
                    for one in (METTLE, MOLT)
                ),
                f"{some[0].rate:.3g}",
                ", ".join(f"{run.epoch}" for run in some),
                f"{statistics.mean(run.losses[-1] for run in some):.2f}",
                f"{some[0].trainable:,}",
                f"{some[0].head:,}",
                *(
                    ("-", "-", "-", "-")
                    if cost is None
                    else (
                        f"{cost.saved_bytes / 1e6:.1f}",
                        f"{cost.peak.bytes / 1e6:.0f}",
                        f"{cost.step.median * 1e3:.0f}",
                        f"{cost.over_frozen.median:.2f}",
                    )
                ),
            )
        )
        mean, deviation = statistics.mean(accuracy), statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        if cost is None:
            beside.append({"title": title, "accuracy": mean})
        else:
            points.append(
                {
                    "method": cost.method,
                    "title": title,
                    "accuracy": mean,
                    "deviation": deviation,
                    "saved": cost.saved_bytes,
                }
            )
    head = (
        "method",
        *SCORES,
        "Mettle over it",
        "MoLT over it",
        "rate",
        "best epoch",
        "last loss",
        "trainable",
        "head",
        "saved MB",
        "peak MB",
        "step ms",
        "of frozen",
    )
    seeds = min(len(some) for some in runs.values())
    places = "; ".join(sorted({run.where for some in runs.values() for run in some}))
    of_runs = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "of one run of each method"
    text = (
        f"{aligned(head, rows, markdown=True)}\n\nPercent, {of_runs}; leads are clip by clip, with their standard "
        "error over the test clips, and what runs with other seeds differ by is not in it. "
        f"{notes} Trained on {places}."
    )
    written = folder / "accuracy.md", folder / "accuracy.json"
    written[0].write_text(text + "\n")
    written[1].write_text(json.dumps({"methods": points, "without cost": beside, "notes": text}, indent=1) + "\n")
    return written


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"
