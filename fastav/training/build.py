"""From a configuration to what runs: backbones, adapter, task, and the data set's splits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fastav.adapters import Adapter, adapter_class
from fastav.backbones.blocks import example_for
from fastav.data import ClipDataset, DataError, Preprocess, read_clip
from fastav.data.clips import Clip
from fastav.tasks.task import Task
from fastav.tasks.vocabulary import Vocabulary
from fastav.training.arguments import task_class
from fastav.training.backbones import build_audio, build_visual
from fastav.training.config import DataConfig, TrainConfig
from fastav.training.data_sets import DataSet, data_set


class Pair(NamedTuple):
    """Two backbones, not yet tapped, and the data set that they are set up for."""

    visual: nn.Module
    audio: nn.Module
    data: DataSet


def build_pair(config: TrainConfig) -> Pair:
    """Build the backbones for sounds of the length that the data set and the audio layout make.

    Random weights, where they are asked for, are drawn from the seed, so that a later command draws the same.

    Raises:
        ValueError: no such model, weights that are not to be had, or a data set for another task.
        ImportError: a library is missing.
    """
    entry = data_set(config.task, config.data.name)
    segments, seconds = entry.segments(config.data)
    if config.adapter.get("audio_layout") == "clip":
        seconds *= segments
    torch.manual_seed(config.seed)
    return Pair(build_visual(config.visual), build_audio(config.audio, seconds), entry)


def build_adapter(config: TrainConfig, pair: Pair) -> Adapter:
    """Build a new adapter beside the backbones.

    Raises:
        ValueError: options that are not possible, or not with these backbones.
    """
    cls = adapter_class(config.method)
    return in_chunks(config, cls(pair.visual, pair.audio, cls.config_class(**config.adapter)))


def in_chunks(config: TrainConfig, adapter: Adapter) -> Adapter:
    """The adapter, its backbones run in the chunks that the configuration asks for."""
    adapter.visual.chunk, adapter.audio.chunk = config.visual.chunk, config.audio.chunk
    return adapter


class Opener:
    """Opens splits of a data set so that the clips are what the adapter's backbones take.

    Sounds are read at the audio backbone's own rate, so that they are resampled once.

    Args:
        adapter: whose backbones they are for.
        entry: the data set.
        config: where it is.
        class_names: which classes, or answers, its splits must have; None for a run that is new.
    """

    def __init__(
        self, adapter: Adapter, entry: DataSet, config: DataConfig, class_names: Sequence[str] | None = None
    ) -> None:
        self.entry, self.config = entry, config
        self.class_names = None if class_names is None else tuple(class_names)
        height, width = example_for(adapter.visual.module).shape[-2:]
        if height != width:
            raise ValueError(f"visual: the backbone takes frames of {height} x {width}; the readers make square ones")
        self.image_size = int(height)
        self.num_segments, self.seconds_per_segment = entry.segments(config)
        settings: dict[str, Any] = {
            "num_segments": self.num_segments,
            "seconds_per_segment": self.seconds_per_segment,
            "audio_layout": adapter.config.audio_layout,
        }
        backbones = adapter.visual, adapter.audio
        rate = getattr(Preprocess.for_backbones(*backbones, **settings).front_end, "sampling_rate", 16000)
        self.preprocess = Preprocess.for_backbones(*backbones, **settings, sampling_rate=rate)

    def __call__(self, split: str, *, raw: bool = False) -> ClipDataset[Any]:
        """Open a split: "train", "val" or "test"; ``raw``: with frames and sounds as they are read.

        Raises:
            DataError: what is on disk cannot be right; says which file and what to do.
        """
        clips = self.entry.open(
            self.config,
            split,
            preprocess=None if raw else self.preprocess,
            image_size=self.image_size,
            sampling_rate=self.preprocess.sampling_rate,
        )
        if self.class_names is not None and clips.class_names != self.class_names:
            raise DataError(
                f"{self.config.root}: {split} has other classes or answers, or in another order, than the run was "
                f"trained on ({len(clips.class_names)} and {len(self.class_names)}); give the data set's own files"
            )
        return clips

    def video(self, path: str, *, raw: bool = False) -> Clip:
        """One clip of any media file, cut as the data set's clips are; its id is the file's name.

        Args:
            path: a video with sound.
            raw: with frames and sound as they are read.

        Raises:
            MediaError: the file is missing or does not decode.
        """
        clip: Clip = {
            "id": Path(path).stem,
            **read_clip(
                path,
                num_segments=self.num_segments,
                seconds_per_segment=self.seconds_per_segment,
                frame_at=self.entry.reader.frame_at,
                spread=self.entry.reader.spread,
                image_size=self.image_size,
                sampling_rate=self.preprocess.sampling_rate,
            ),
        }
        return clip if raw else self.preprocess(clip)


def task_options(config: TrainConfig, adapter: Adapter, clips: ClipDataset[Any]) -> dict[str, Any]:
    """What the task is built from, as plain values: the user's choices, and what follows from adapter and data set.

    Args:
        config: the run's.
        adapter: the run's.
        clips: the training split.
    """
    follows: dict[str, Callable[[], Any]] = {
        "num_classes": lambda: clips.num_classes,
        "answers": lambda: list(clips.class_names),
        "vocabulary": lambda: list(Vocabulary.from_questions(row.question for row in clips.rows).words),
        "size": lambda: list(clips.targets(clips.rows[0])["masks"].shape[-2:]),
        "num_tokens": lambda: adapter.config.num_tokens,
        "width": lambda: adapter.config.width,
        "feature_widths": lambda: [adapter.visual.widths[i] for i in adapter.injected],
    }
    taken = inspect.signature(task_class(config.task)).parameters
    return {name: value() for name, value in follows.items() if name in taken} | dict(config.head)


def build_task(name: str, options: Mapping[str, Any]) -> Task:
    """Build a task from what :func:`task_options` gave.

    Raises:
        ValueError: options that are not possible.
    """
    return task_class(name)(**options)
