"""``fastav evaluate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from math import isnan

from fastav.data import ClipDataset
from fastav.tasks import SegmentationTask
from fastav.training.arguments import SECTIONS, run_parser
from fastav.training.cli import plainly
from fastav.training.clips import Clips, count_left_out, say_clips
from fastav.training.run import Loaded, Scored, load_run, score

_DESCRIPTION = (
    "Score the best epoch of a run on a split: a table, and RUN/scores-SPLIT.json with fractions of one. Scores that "
    "have nothing to be a fraction of are nan (null in the file)."
)


def main(arguments: Sequence[str]) -> int:
    """Score a run."""
    with plainly():
        parser = run_parser(arguments, "evaluate", _DESCRIPTION, "data", "trainer")
        parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="what to score")
        parser.add_argument(
            "--scoring",
            choices=["dataset", "avsbench"],
            default=None,
            help="over which frames segmentation's scores are means; by default as the run was trained",
        )
        values = parser.parse_args(list(arguments))
        data, trainer = (SECTIONS[name](**values[name].as_dict()) for name in ("data", "trainer"))
        run = load_run(values.run, data)
        if run.config.task == "parsing" and values.split == "train":
            raise ValueError("LLP's training clips have no events by second to be scored: give --split val or test")
        if values.scoring is not None:
            if not isinstance(run.task, SegmentationTask):
                raise ValueError(f"--scoring is for the task 'segmentation', and this run's is {run.config.task!r}")
            run.task.scoring = values.scoring
        split = run.open(values.split)
    scored = score(run, Clips(data, test=split), trainer)
    if scored.is_first:
        _report(run, values.split, split, scored)
    return 0


def _report(run: Loaded, name: str, split: ClipDataset, scored: Scored) -> None:
    entries = {
        "split": name,
        **({"scoring": run.task.scoring} if isinstance(run.task, SegmentationTask) else {}),
        "clips": scored.clips,
        "left_out": count_left_out(split, scored.clips),
        "epoch": run.record["epoch"] + 1,
        "chosen_by": run.record["chosen_by"],
        "scores": {name: None if isnan(value) else value for name, value in scored.scores.items()},
    }
    print(table(scored.scores))
    print(f"{say_clips(split, scored.clips, f' of {name}')}; percent")
    written = run.folder.path / f"scores-{name}.json"
    with plainly():
        written.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    print(f"also in {written}")
    if name == "test" and run.record["chosen_by"].startswith("test/"):
        print("note: this run's epoch was chosen on the test split: the score is optimistic", file=sys.stderr)


def table(scores: dict[str, float]) -> str:
    """Scores as lines of name and percent."""
    width = max(map(len, scores), default=0)
    return "\n".join(f"{name:<{width}}  {100 * value:6.2f}" for name, value in scores.items())
