"""Predictions on disk: events as spans of time by name, answers by name, masks as pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastav.optional import load_optional
from fastav.tasks.task import Batch


class PredictionFiles:
    """The files of one ``fastav predict``.

    ``predictions.jsonl`` has a line for each clip: "id", "index" and, of each prediction, what :func:`plain` makes of
    it. Until all are there it is called ``predictions.jsonl.part``, and a later try may write over it.
    ``probabilities.npz`` holds "id", "index" and each array of probabilities, the clips first. Masks are
    ``masks/ID/0.png`` and so on, 255 where something sounds, and their probabilities are not kept.

    Args:
        folder: made if it is not there.
        names: of the classes, or of the answers.
        seconds: length of a segment.
        indices: by a clip's position among those that are predicted, its place in the split's list, which is "index":
            several clips can share an id. None, as for a video: there is no such place, and no "index".

    Attributes:
        last: the last line.

    Raises:
        ValueError: the folder holds predictions already.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], seconds: float, indices: Sequence[int] | None = None
    ) -> None:
        self.folder, self.names, self.seconds, self.indices = folder, names, seconds, indices
        self.last: dict[str, Any] = {}
        self._finished = folder / "predictions.jsonl"
        if self._finished.exists():
            raise ValueError(f"{folder} holds predictions already: choose another --output")
        folder.mkdir(parents=True, exist_ok=True)
        self._part = folder / "predictions.jsonl.part"
        self._lines = self._part.open("w", encoding="utf-8")
        self._arrays: dict[str, list[np.ndarray]] = {}
        self._clips: dict[str, list[Any]] = {"id": []} if indices is None else {"id": [], "index": []}

    def write(self, batch: Batch, predictions: Mapping[str, Tensor]) -> None:
        """Write the predictions (B, ...) of one batch."""
        for row, name in enumerate(batch["id"]):
            line: dict[str, Any] = {"id": name}
            if self.indices is not None:
                line["index"] = self.indices[int(batch["index"][row])]
            for key, listed in self._clips.items():
                listed.append(line[key])
            if "question" in batch:
                line["question"] = batch["question"][row]
            for kind, values in predictions.items():
                value = values[row].cpu()
                if kind == "masks":
                    line[kind] = self._write_masks(name, value)
                elif value.is_floating_point():
                    if "masks" not in predictions:
                        self._arrays.setdefault(kind, []).append(value.float().numpy())
                else:
                    line["events" if kind == "labels" else kind] = plain(value, self.names, self.seconds)
            self._lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.last = line

    @property
    def num_clips(self) -> int:
        """How many are written so far."""
        return len(self._clips["id"])

    def close(self) -> int:
        """Finish the files; how many clips there are."""
        self._lines.close()
        if self._arrays:
            arrays = {kind: np.stack(values) for kind, values in self._arrays.items()}
            clips = {key: np.array(values) for key, values in self._clips.items()}
            np.savez_compressed(self.folder / "probabilities.npz", **clips, **arrays)  # type: ignore
        self._part.rename(self._finished)
        return self.num_clips

    def _write_masks(self, name: str, masks: Tensor) -> list[str]:
        image = load_optional("PIL.Image", by="masks", extra="data")
        place = self.folder / "masks" / name
        place.mkdir(parents=True, exist_ok=True)
        paths = [place / f"{segment}.png" for segment in range(len(masks))]
        for path, mask in zip(paths, masks, strict=True):
            image.fromarray(mask.numpy().astype(np.uint8) * 255).save(path)
        return [str(path.relative_to(self.folder)) for path in paths]


def plain(prediction: Tensor, names: Sequence[str], seconds: float) -> Any:
    """One clip's prediction in words.

    Args:
        prediction: (T,) integers, one class a segment, of which the number of classes is background; (T, C) bool, any
            classes a segment; or one integer, the number of an answer.
        names: of the classes, or of the answers.
        seconds: length of a segment.

    Returns:
        Events as ``{"event": name, "start": seconds, "end": seconds}``, by class and time; or the answer's name.
    """
    if prediction.ndim == 0:
        return names[int(prediction)]
    if prediction.ndim == 1:
        prediction = prediction[:, None] == prediction.new_tensor(range(len(names)))
    return [
        {"event": names[number], "start": seconds * start, "end": seconds * end}
        for number, column in enumerate(prediction.mT.tolist())
        for start, end in _runs(column)
    ]


def _runs(marks: list[bool]) -> list[tuple[int, int]]:
    """First and one past the last number of each run of True."""
    runs, start = [], 0
    for mark, run in groupby(marks):
        end = start + len(list(run))
        if mark:
            runs.append((start, end))
        start = end
    return runs
