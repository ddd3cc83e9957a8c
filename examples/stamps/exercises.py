"""The demo's exercises: for each task its examples, its methods and the scores that the table shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.stamps.examples import Examples
from examples.stamps.methods import WIDTH, Adapted, Backbones, LastLayers, MeanPooled, Model
from examples.stamps.probes import LocalizationProbe, ParsingProbe, QuestionsProbe, SegmentationProbe
from examples.stamps.scenes import Clips, SegmentationClips, ask, mismatched, weak_labels
from examples.stamps.scenes.templates import TEMPLATES
from examples.stamps.taps import Split
from fastav import FrozenBackbone, MettleAdapter, MettleConfig, MoLTAdapter, MoLTConfig
from fastav.adapters import Adapter
from fastav.tasks import LocalizationTask, ParsingTask, QuestionAnsweringTask, SegmentationTask, Vocabulary
from fastav.tasks.task import Task

METTLE_TAPS = [1, 3, 5, 7, 9, 11]  # every second of the 12 blocks; and all four of the audio encoder's
MOLT_TAPS = [8, 9, 10, 11]  # the last quarter, but never fewer than four
STAGES = [2, 5, 8, 11]  # the last of each quarter: what tokens are injected into
CLIP_TAPS = sorted({*METTLE_TAPS, *MOLT_TAPS})
SCENE_TAPS = sorted({*STAGES, *MOLT_TAPS})

LESSONS = 3  # questions of one template that a training clip is asked at most; the other splits' clips are asked one
BATCH = 16  # clips in a training step, scenes half as many: their maps take more memory

PROBE, POOLED, MUTED = "linear probe, last layers", "mean-pooled, all layers", "Mettle without the sound"
METTLE, MOLT = "Mettle", "MoLT"
BASELINES = (PROBE, POOLED)


@dataclass(frozen=True)
class Exercise:
    """One task on composed clips.

    Attributes:
        name: what the table calls it.
        examples: by split, "train", "validation" and "test" at least.
        methods: by name, how to make a new model.
        shown: what the table calls each score that it shows, and the score, a key of the task's metric.
        chance: what knows nothing of the clips, and its scores on the test split.
        epochs: of the adapters.
        settling: epochs of the linear probe and the mean-pooled baseline, which settle more slowly; validation chooses.
        batch: clips in a training step.
        weight_decay: of matrices.
        twins: whether clips 2 i and 2 i + 1 show the same frames.
    """

    name: str
    examples: dict[str, Examples]
    methods: dict[str, Callable[[], Model]]
    shown: dict[str, str]
    chance: tuple[str, Mapping[str, Tensor]]
    epochs: int
    settling: int
    batch: int = BATCH
    weight_decay: float = 0.05
    twins: bool = False


def localization(splits: dict[str, Split], *, weak: bool, **options: Any) -> Exercise:
    """Which class is both seen and heard; with ``weak``, learned from which events a clip has, not when.

    Args:
        splits: by name.
        weak: whether seconds have labels.
        options: of both adapters' configurations.
    """
    classes = _clips(splits["train"]).material.num_classes

    def task(tokens: int, width: int) -> Task:
        return LocalizationTask(classes, num_tokens=tokens, width=width, supervision="weak" if weak else "full")

    examples = {}
    for name, split in splits.items():
        clips = _clips(split)
        events = torch.nn.functional.one_hot(clips.labels, classes + 1)[..., :classes].amax(1).float()
        targets = {"labels": clips.labels, "clip_labels": events, "mismatched": mismatched(clips)}
        examples[name] = _one_a_clip(split, targets)
    metric, test = task(1, 1).metric(), examples["test"].targets
    metric.update(torch.full_like(test["labels"], classes), test["labels"], test["mismatched"])
    return Exercise(
        "localisation, weak" if weak else "localisation",
        examples,
        _methods(splits["train"], task, lambda width: LocalizationProbe(width, classes), **options),
        {"accuracy": "accuracy"} if weak else {"accuracy": "accuracy", "mismatched recall": "mismatched_recall"},
        ("always background", metric.compute()),
        epochs=12,
        settling=48,
    )


def parsing(splits: dict[str, Split]) -> Exercise:
    """What is heard and what is seen in each second, learned from what happens in the clip at all."""
    classes = _clips(splits["train"]).material.num_classes

    def task(tokens: int, width: int) -> Task:
        return ParsingTask(classes, num_tokens=tokens, width=width)

    examples = {}
    for name, split in splits.items():
        clips = _clips(split)
        targets = {"clip_labels": weak_labels(clips), "audio_events": clips.heard, "visual_events": clips.seen}
        examples[name] = _one_a_clip(split, targets)
    metric, test = task(1, 1).metric(), examples["test"].targets
    everywhere = (test["clip_labels"] > 0)[:, None].expand_as(test["audio_events"])
    metric.update(everywhere, everywhere, test["audio_events"], test["visual_events"])
    return Exercise(
        "parsing",
        examples,
        _methods(splits["train"], task, lambda width: ParsingProbe(width, classes)),
        {"Type@AV": "segment/type", "Event@AV": "segment/event"},
        ("the clip's true labels, everywhere", metric.compute()),
        epochs=32,
        settling=64,
    )


def questions(splits: dict[str, Split], text_model: Path | None) -> Exercise:
    """Templated questions about the clips; read by a frozen text transformer, or an LSTM where there is none."""
    asked = {name: ask(_clips(split), most=LESSONS if name == "train" else 1) for name, split in splits.items()}
    answers, words = asked["train"].answers, Vocabulary.from_questions(asked["train"].text).words

    def task(tokens: int, width: int) -> QuestionAnsweringTask:
        folder = None if text_model is None else str(text_model.parent)
        return QuestionAnsweringTask(
            words,
            answers,
            num_tokens=tokens,
            width=width,
            text_model=folder,
            label_smoothing=0.1,
            swap_unasked=0.5,
        )

    examples = {
        name: Examples(
            splits[name], {"question": some.text, "answer": some.answer, "question_type": some.type}, some.clip
        )
        for name, some in asked.items()
    }
    metric, train, test = task(1, 1).metric(), asked["train"], asked["test"]
    # The commonest answer to each template in training.
    counts = torch.stack(
        [torch.bincount(train.answer[train.template == t], minlength=len(answers)) for t in range(len(TEMPLATES))]
    )
    metric.update(counts.argmax(1)[test.template], test.answer, test.type)
    return Exercise(
        "questions",
        examples,
        _methods(
            splits["train"],
            task,
            lambda width: QuestionsProbe(width, task(1, 1).question_encoder.width, len(answers)),
            heard=True,
        ),
        {"accuracy": "accuracy"},
        ("each template's commonest answer", metric.compute()),
        epochs=20,
        settling=20,
        weight_decay=1.5,
    )


def segmentation(name: str, splits: dict[str, Split]) -> Exercise:
    """Which pixels are of what sounds."""
    examples = {}
    for key, split in splits.items():
        items = [_scenes(split)[index] for index in tqdm(range(len(split)), "drawing masks", leave=False)]
        targets = {part: torch.stack([item[part] for item in items]) for part in ("masks", "has_mask")}
        examples[key] = _one_a_clip(split, targets)
    train, test = splits["train"], examples["test"]
    backbones = _tapped(train, STAGES)
    widths, size = backbones.visual.widths, _scenes(train).image_size

    def task(tokens: int, width: int) -> Task:
        return SegmentationTask(widths, num_tokens=tokens, width=width, size=size, hidden=32)

    def probe() -> Model:
        return Model(LastLayers(train, backbones, dense=True), _with_head(task(1, 1), SegmentationProbe(widths[-1])))

    def mettle(**options: Any) -> Adapter:
        layers: dict[str, Any] = {"visual": [STAGES[-1]], "audio": "all"}
        return MettleAdapter(
            *backbones, MettleConfig(audio_layout="clip", inject_stages="stages", layers=layers, **options)
        )

    def molt() -> Adapter:
        layers: dict[str, Any] = {"visual": MOLT_TAPS, "audio": "all"}
        tapped = _tapped(train, SCENE_TAPS)
        return MoLTAdapter(*tapped, MoLTConfig(audio_layout="clip", inject_stages=STAGES, layers=layers))

    metric = task(1, 1).metric()
    in_sight = torch.stack([_scenes(test.split).thing_masks(index).any(0) for index in range(len(test))])
    metric.update(in_sight.float(), test.targets["masks"], test.targets["has_mask"])
    return Exercise(
        name,
        examples,
        {
            PROBE: probe,
            POOLED: lambda: Model(MeanPooled(train, backbones, dense=True), task(1, WIDTH)),
            MUTED: lambda: _adapted(mettle(inject_source="visual"), task, muted=True),
            METTLE: lambda: _adapted(mettle(), task),
            MOLT: lambda: _adapted(molt(), task),
        },
        {"mIoU": "miou", "F": "f_score"},
        ("every thing in sight", metric.compute()),
        epochs=8,
        settling=8,
        batch=BATCH // 2,
        twins=True,
    )


def _methods(
    train: Split,
    task: Callable[[int, int], Task],
    probe: Callable[[int], nn.Module],
    *,
    heard: bool = False,
    **options: Any,
) -> dict[str, Callable[[], Model]]:
    """The methods of a task that reads tokens alone.

    Args:
        train: the training split.
        task: makes the task for K and W.
        probe: makes its linear head for a backbone's width.
        heard: whether to show what can be done without the sound.
        options: of both adapters' configurations.
    """
    many, late = _tapped(train, METTLE_TAPS), _tapped(train, MOLT_TAPS)

    def mettle() -> Adapter:
        return MettleAdapter(*many, MettleConfig(audio_layout="clip", **options))

    return {
        PROBE: lambda: Model(LastLayers(train, many), _with_head(task(1, 1), probe(many.visual.widths[-1]))),
        POOLED: lambda: Model(MeanPooled(train, many), task(1, WIDTH)),
        **({MUTED: lambda: _adapted(mettle(), task, muted=True)} if heard else {}),
        METTLE: lambda: _adapted(mettle(), task),
        MOLT: lambda: _adapted(MoLTAdapter(*late, MoLTConfig(audio_layout="clip", **options)), task),
    }


def _adapted(adapter: Adapter, task: Callable[[int, int], Task], *, muted: bool = False) -> Model:
    return Model(Adapted(adapter, muted=muted), task(adapter.config.num_tokens, adapter.config.width))


def _with_head(task: Any, head: nn.Module) -> Task:
    task.head = head
    return task


def _tapped(split: Split, taps: list[int]) -> Backbones:
    return Backbones(FrozenBackbone(split.visual.module, taps), split.audio)


def _one_a_clip(split: Split, targets: dict[str, Tensor]) -> Examples:
    return Examples(split, targets, torch.arange(len(split)))


def _clips(split: Split) -> Clips:
    assert isinstance(split.clips, Clips)
    return split.clips


def _scenes(split: Split) -> SegmentationClips:
    assert isinstance(split.clips, SegmentationClips)
    return split.clips
