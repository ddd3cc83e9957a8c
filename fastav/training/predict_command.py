"""``fastav predict``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import BasePredictionWriter

from fastav.data.clips import Clip
from fastav.training.arguments import SECTIONS, run_parser
from fastav.training.cli import plainly
from fastav.training.clips import Clips, say_clips, say_none
from fastav.training.errors import RunError
from fastav.training.predictions import PredictionFiles
from fastav.training.run import Loaded, load_run, make_trainer

_DESCRIPTION = (
    "Write what the best epoch of a run predicts for the clips of a split, or for one video, into a folder: "
    "predictions.jsonl with a line for each clip; probabilities.npz; for segmentation masks/ID/SEGMENT.png instead."
)


class _Writer(BasePredictionWriter):
    """Hands each batch's predictions on as soon as they are there."""

    def __init__(self, files: PredictionFiles) -> None:
        super().__init__("batch")
        self.files = files

    def write_on_batch_end(
        self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, batch: Any, *_: Any
    ) -> None:
        """Write one batch; nothing where all its clips were left out."""
        if prediction is not None:
            self.files.write(batch, prediction)


def main(arguments: Sequence[str]) -> int:
    """Predict."""
    with plainly():
        parser = run_parser(arguments, "predict", _DESCRIPTION, "data", "trainer")
        parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="what to predict")
        parser.add_argument("--video", type=str, default=None, help="a media file, to predict instead of a split")
        parser.add_argument("--question", type=str, default=None, help="asked of the --video, if the task is to answer")
        parser.add_argument(
            "--output", type=str, default=None, help="the folder; by default RUN/predictions-SPLIT or -VIDEO's name"
        )
        values = parser.parse_args(list(arguments))
        if values.question is not None and values.video is None:
            raise ValueError("--question is asked of a --video; a split's clips have questions of their own")
        data, trainer_config = (SECTIONS[name](**values[name].as_dict()) for name in ("data", "trainer"))
        run = load_run(values.run, data)
        clips: Any = run.open(values.split) if values.video is None else [_video(run, values)]
        if isinstance(trainer_config.devices, list):  # one process writes the files
            trainer_config.devices = trainer_config.devices[:1]
        else:
            trainer_config.devices = 1
        what = values.split if values.video is None else Path(values.video).stem
        folder = Path(values.output or run.folder.path / f"predictions-{what}")
        indices = clips.indices if values.video is None else None
        files = PredictionFiles(folder, run.record["class_names"], run.open.seconds_per_segment, indices)
        trainer = make_trainer(trainer_config, run.config.optimizer, [_Writer(files)])
    loaders = Clips(data, test=clips)
    trainer.predict(run.module(), loaders, return_predictions=False)
    if not files.num_clips:
        raise RunError(say_none(*loaders.describe("test"), "predict"))
    written = files.close()
    if values.video is not None:
        print(json.dumps(files.last, ensure_ascii=False))
    print(f"{say_clips(clips, written)}, in {folder}")
    return 0


def _video(run: Loaded, values: Any) -> Clip:
    """The clip of a media file, with what is asked about it."""
    answers = run.config.task == "question_answering"
    if answers != (values.question is not None):
        raise ValueError(f"the task {run.config.task!r} {'wants a' if answers else 'answers no'} --question")
    clip = run.open.video(values.video)
    return {**clip, "question": values.question} if answers else clip
