"""Accuracy beside cost: the runs of all methods as tables, a picture, and what ``benchmarks.report`` reads."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.figures import draw_accuracy
from examples.stamps.exercises import METTLE, MOLT, POOLED
from examples.stamps.report import lead, spread
from fastav.cost import Cost
from fastav.cost.report import TITLES, megabytes
from fastav.cost.tables import aligned

#: What the table calls each score, and the score, a key of the task's metric.
SCORES = {"accuracy": "accuracy", "of foreground": "foreground_accuracy", "mismatched recall": "mismatched_recall"}

#: Whose leads over all others are shown.
LEADERS = (METTLE, MOLT, POOLED)


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


class Runs(NamedTuple):
    """All runs of one method.

    Attributes:
        chosen: those with the learning rate that validation chose, one a seed.
        tried: those of the first seed with all rates, by rate.
    """

    chosen: list[Outcome]
    tried: list[Outcome]


def write_accuracy(
    folder: Path,
    runs: Mapping[str, Runs],
    costs: Mapping[str, Cost],
    nothing: tuple[str, Mapping[str, float]],
    notes: str,
) -> list[Path]:
    """Write ``accuracy.md``, ``accuracy.png``, and ``accuracy.json`` for reports.

    Args:
        folder: where to.
        runs: by method.
        costs: of a training step of one clip, of the methods that were measured.
        nothing: what knows nothing of the clips, and its scores on the test split, in percent.
        notes: how both were measured.

    Raises:
        ValueError: a cost is of a model of another size than that which was trained.
    """
    for method, cost in costs.items():
        if cost.trainable != runs[method].chosen[0].trainable:
            raise ValueError(
                f"{method}: a model of {runs[method].chosen[0].trainable:,} parameters was trained, and the cost is of "
                f"one of {cost.trainable:,}; run it again, or measure the cost of what was trained"
            )
    title, scores = nothing
    points, beside = [], [{"title": title, "accuracy": scores["accuracy"]}]
    for method, (some, _) in runs.items():
        accuracy = [run.test["accuracy"] for run in some]
        mean, deviation = statistics.mean(accuracy), statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        one = {"title": TITLES.get(method, method), "accuracy": mean}
        if method in costs:
            cost = costs[method]
            points.append({"method": cost.method, **one, "deviation": deviation, "saved": cost.saved_bytes})
        else:
            beside.append(one)
    places = "; ".join(sorted({run.where for some, _ in runs.values() for run in some}))
    text = "\n\n".join([_scores(runs, costs, nothing), _LEGEND, _search(runs), _SEARCH_LEGEND, notes])
    (folder / "accuracy.md").write_text(f"{text}\n\nTrained on {places}.\n")
    (folder / "accuracy.json").write_text(
        json.dumps({"title": PICTURE, "methods": points, "without cost": beside, "notes": text}, indent=1) + "\n"
    )
    draw_accuracy(points, beside, folder / "accuracy.png", PICTURE)
    return [folder / f"accuracy.{kind}" for kind in ("md", "json", "png")]


#: Above the picture.
PICTURE = "Localisation on composed clips, test split"

_LEGEND = (
    "Percent on the test split, mean ± standard deviation where there are several *runs*, which have other seeds. *Of "
    "foreground*: of the seconds in which something happens. *Mismatched recall*: of those in which one thing is seen "
    "and another heard, how many are called background. *Trainable* are the method's own parameters, *saved* what one "
    "step keeps for backward, *peak* its memory over model, optimizer and inputs, *of frozen* its time over that of "
    "the two frozen backbones' forward, all of one clip; *s/epoch* is of training, on a machine that had other work "
    "too: Mettle, MoLT and the mean-pooled features read stored taps and run no backbone there."
)

_SEARCH_LEGEND = (
    "*Tried*: each learning rate with its best epoch's accuracy on validation, which chose rate and epoch. Leads are "
    "clip by clip on the test split, means over seeds first, with their standard error over clips; what runs with "
    "other seeds differ by comes on top of that. A lead of less than twice its error is none."
)


def _scores(runs: Mapping[str, Runs], costs: Mapping[str, Cost], nothing: tuple[str, Mapping[str, float]]) -> str:
    """How well methods do, beside what they cost."""
    title, scores = nothing
    head = ("method", "runs", *SCORES, "trainable", "saved MB", "peak MB", "step ms", "of frozen", "s/epoch")
    rows = [(title, "-", *(f"{scores[key]:.1f}" for key in SCORES.values()), *"------")]
    for method, (some, _) in runs.items():
        cost = costs.get(method)
        weighed = (
            ("-", "-", "-", "-")
            if cost is None
            else (
                megabytes(cost.saved_bytes),
                megabytes(cost.peak.bytes),
                f"{cost.step.median * 1e3:.0f}",
                f"{cost.over_frozen.median:.2f}",
            )
        )
        rows.append(
            (
                TITLES.get(method, method),
                f"{len(some)}",
                *(spread([run.test[key] for run in some]) for key in SCORES.values()),
                f"{some[0].trainable:,}",
                *weighed,
                f"{statistics.median(run.seconds_per_epoch for run in some):.0f}",
            )
        )
    return aligned(head, rows, markdown=True)


def _search(runs: Mapping[str, Runs]) -> str:
    """How methods were trained, and who leads whom."""
    leaders = [one for one in LEADERS if one in runs]
    of_clips = {method: torch.tensor([run.of_clips for run in some]).mean(0) for method, (some, _) in runs.items()}
    rows = [
        (
            TITLES.get(method, method),
            f"{some[0].rate:.2g}",
            ", ".join(f"{run.rate:.2g}: {run.validation:.1f}" for run in tried),
            ", ".join(f"{run.epoch}" for run in some),
            f"{statistics.mean(run.losses[-1] for run in some):.2f}",
            f"{some[0].head:,}",
            *("-" if one == method else lead(of_clips[one] - of_clips[method]) for one in leaders),
        )
        for method, (some, tried) in runs.items()
    ]
    head = ("method", "rate", "tried", "best epoch", "last loss", "head", *(f"{one} over it" for one in leaders))
    return aligned(head, rows, markdown=True)
