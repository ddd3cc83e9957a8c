"""What a run is made from: dataclasses that the command line's flags and the configuration files both come from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class DataConfig:
    """Where the clips come from.

    Attributes:
        root: the data set's folder; ``fastav check-data`` says whether it is laid out as it should be.
        name: the data set; None is the one that the task was made for. Segmentation has two and wants to be told.
        media: whether frames and sounds are decoded from the videos ("video"), read as extracted files ("frames"), or
            whichever is there ("auto").
        on_error: refuse a data set with a broken or missing file ("raise"), or warn by name and go on without it
            ("skip").
        batch_size: clips a batch, on each device.
        num_workers: processes that read and prepare clips, for each device; 0 does it in the training process.
        options: further arguments of the data set's reader, such as questions of MUSIC-AVQA.
    """

    root: str
    name: Literal["ave", "llp", "avsbench-s4", "avsbench-ms3", "music-avqa"] | None = None
    media: Literal["auto", "video", "frames"] = "auto"
    on_error: Literal["raise", "skip"] = "raise"
    batch_size: int = 8
    num_workers: int = 4
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size")
        _at_least(self, 0, "num_workers")


@dataclass
class VisualConfig:
    """The frozen visual backbone, which is read from, never trained and never saved.

    Attributes:
        name: what its library calls it, such as vit_base_patch16_224; of transformers also a folder that
            ``save_pretrained`` wrote.
        library: the library that builds it.
        pretrained: with the library's pretrained weights, which are fetched once and cached. False draws them at
            random; the name of a transformers model is then its type, such as vit.
        checkpoint: a file of weights for a timm model, instead of the library's own.
        options: further arguments of ``timm.create_model``, such as img_size, or fields of the transformers
            configuration.
        chunk: frames that go through the backbone at a time, for cards on which a batch's activations do not fit; None
            for all of them.
    """

    name: str
    library: Literal["timm", "transformers"] = "timm"
    pretrained: bool = True
    checkpoint: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None:
            _at_least(self, 1, "chunk")


@dataclass
class AudioConfig:
    """The frozen audio backbone, a transformers model, which is read from, never trained and never saved.

    Attributes:
        name: what the Hugging Face hub calls it, such as openai/whisper-tiny, or a folder that ``save_pretrained``
            wrote.
        pretrained: with pretrained weights, which are fetched once and cached. False draws them at random; the name is
            then the model's type, such as whisper.
        options: fields of its configuration.
        chunk: sounds that go through the backbone at a time, for cards on which a batch's activations do not fit; None
            for all of them.
    """

    name: str
    pretrained: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None:
            _at_least(self, 1, "chunk")


@dataclass
class OptimizerConfig:
    """AdamW with a warm-up and a cosine down to zero.

    Attributes:
        epochs: passes over the training split.
        patience: stop after so many epochs without a better score; None goes through all of them.
        lr: learning rate at the top.
        weight_decay: of all parameters but those that the adapter names in ``no_weight_decay()``.
        warm_up: share of all steps in which the learning rate rises.
        clip_norm: the gradient's largest norm; 0 does not clip.
        accumulate: batches whose gradients are averaged into one step.
    """

    epochs: int = 20
    patience: int | None = None
    lr: float = 1e-3
    weight_decay: float = 0.05
    warm_up: float = 0.05
    clip_norm: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        _at_least(self, 1, "epochs", "accumulate", *(["patience"] if self.patience is not None else []))
        _at_least(self, 0, "lr", "weight_decay", "warm_up", "clip_norm")
        if self.warm_up > 1:
            raise ValueError(f"warm_up is {self.warm_up}, wanted a share of all steps, 0 ... 1")


@dataclass
class TrainerConfig:
    """Where and how Lightning runs it.

    Attributes:
        accelerator: cpu, gpu, mps, or auto for the best there is.
        devices: how many, a list of their numbers, or auto for all; each gets a process of its own.
        precision: Lightning's word for it, such as 32-true, bf16-mixed or 16-mixed.
    """

    accelerator: str = "auto"
    devices: int | list[int] | Literal["auto"] = "auto"
    precision: str = "32-true"


@dataclass
class TrainConfig:
    """One training run.

    Attributes:
        task: what is to be learned.
        data: where the clips come from.
        visual: the frozen visual backbone.
        audio: the frozen audio backbone.
        output: the run's folder; made, and refused if it holds a run with a finished epoch already.
        method: the adapter's method, whose options are the flags --adapter.*.
        adapter: the fields of the method's configuration.
        head: the options of the task's head and losses.
        optimizer: how it is trained.
        trainer: where it runs.
        seed: of the weights' initial values, the order of the clips and dropout; 32 bits.
        resume: go on with the run in the output folder, from its last finished epoch.
        select_on_test: choose the epoch by the score on the test split, as published figures of the peers did. That
            score is optimistic: the test split has been looked at once an epoch. Without it, validation chooses.
    """

    task: Literal["localization", "parsing", "segmentation", "question_answering"]
    data: DataConfig
    visual: VisualConfig
    audio: AudioConfig
    output: str = "runs/latest"
    method: str = "mettle"
    adapter: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0
    resume: bool = False
    select_on_test: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}, wanted 0 ... {2**32 - 1}")


@dataclass
class ProfileConfig:
    """What ``fastav profile`` measures.

    Attributes:
        visual: the visual backbone; its weights do not matter, --visual.pretrained false draws them.
        audio: the audio backbone, likewise.
        methods: which methods; none named are all.
        clips: clips in a step.
        segments: T, segments of a clip.
        options: options of single methods by name, such as ``{"mettle": {"num_tokens": 8}}``.
        memory: GiB that a step may take; model, optimizer and inputs come on top of it. Each method is measured once
            more, with the largest batch that fits. None is all that a GPU has; on a CPU, None measures no other batch
            than that of ``clips``.
        seconds: of sound in a segment, which a Whisper encoder is cut to and waveforms last; spectrograms are as long
            as the backbone takes them.
        audio_layout: one sound a segment ("segment"), or one a clip, whose tokens are cut into spans ("clip").
        precision: of the backbones and of what stands in them; side branches and heads are float32. Not float16, in
            which AdamW's epsilon is zero.
        device: where; "auto" is the GPU if there is one.
        rounds: how often each thing is timed.
        output: the folder for the table, the picture, all figures as JSON and, on a GPU, memory snapshots; if a profile
            is there already, ``<output>-2`` and so on.
    """

    visual: VisualConfig
    audio: AudioConfig
    methods: list[str] = field(default_factory=list)
    clips: int = 1
    segments: int = 10
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: float | None = None
    seconds: float = 1.0
    audio_layout: Literal["segment", "clip"] = "segment"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    rounds: int = 5
    output: str = "profile"

    def __post_init__(self) -> None:
        _at_least(self, 1, "clips", "segments")
        _at_least(self, 2, "rounds")
        for name in ("seconds", *(["memory"] if self.memory is not None else [])):
            if not 0 < getattr(self, name) < math.inf:  # not a number fails too
                raise ValueError(f"{name} is {getattr(self, name)}, wanted a number above 0")


def _at_least(config: Any, smallest: float, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= smallest:  # not a number fails too
            raise ValueError(f"{name} is {getattr(config, name)}, wanted at least {smallest}")
