"""Runs with Lightning: set up from a configuration or from a run's folder, trained, scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastav.adapters import Adapter
from fastav.backbones.identity import fingerprint
from fastav.tasks.task import Task
from fastav.training.arguments import SECTIONS
from fastav.training.build import Opener, build_adapter, build_pair, build_task, in_chunks, task_options
from fastav.training.clips import Clips, say_clips
from fastav.training.config import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig
from fastav.training.errors import RunError
from fastav.training.module import AudioVisualModule
from fastav.training.run_folder import RunFolder

try:
    from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
except ImportError as error:
    raise ImportError('fastav.training needs lightning: pip install "fastav[training]"') from error


class Checkpoint(ModelCheckpoint):
    """Lightning's, for folders that may be moved or copied before a run goes on: only the paths are then others."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over with this folder's paths."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class Patience(EarlyStopping):
    """Lightning's, that also knows when a run that is resumed had ended already."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the first epoch if patience had run out."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class BestEpoch(Checkpoint):
    """Keeps the best epoch's checkpoint, and its adapter and head as :class:`RunFolder` has them.

    Args:
        folder: the run's.
        monitor: the score that chooses the epoch, the first of equals.
        record: what is known of the run beside its epochs.
    """

    def __init__(self, folder: RunFolder, monitor: str, record: dict[str, Any]) -> None:
        super().__init__(
            folder.checkpoints,
            "best",
            monitor=monitor,
            mode="max",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.folder, self.record = folder, record

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch if it is the best so far.

        Raises:
            RunError: its score is no number; Lightning would take it for minus infinity.
        """
        assert self.monitor is not None
        now = float(trainer.callback_metrics.get(self.monitor, 0.0))
        if not isfinite(now) and not trainer.sanity_checking:
            raise RunError(
                f"epoch {trainer.current_epoch + 1}: {self.monitor} is {now}, by which no epoch can be chosen: the "
                f"split's clips hold nothing that it could be a fraction of, see their annotations"
            )
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        score = self.best_model_score
        if score is None or (before is not None and score <= before) or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, AudioVisualModule)
        epoch = {"epoch": trainer.current_epoch, "chosen_by": self.monitor, "score": float(score)}
        self.folder.save_best(pl_module.adapter, pl_module.task, {**self.record, **epoch})


class TrainedOn(Callback):
    """Counts the clips that were trained on, each once, though several processes repeat some to have as many each.

    Attributes:
        count: how many, once the training has ended.
    """

    def __init__(self, clips: int) -> None:
        self.clips, self.count = clips, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from nothing."""
        self._seen = torch.zeros(self.clips, dtype=torch.int32, device=pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Mark the batch's clips."""
        if batch:
            self._seen.index_fill_(0, batch["index"], 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what any process has marked."""
        self.count = int(trainer.strategy.reduce(self._seen, reduce_op="sum").count_nonzero())


class Training(NamedTuple):
    """A run that is set up and ready to be trained."""

    folder: RunFolder
    module: AudioVisualModule
    clips: Clips
    trainer: Trainer
    trained_on: TrainedOn
    resume: bool

    def fit(self) -> dict[str, Any]:
        """Train; what is known of the best epoch, see :meth:`RunFolder.save_best`."""
        self.trainer.fit(self.module, self.clips, ckpt_path=str(self.folder.last) if self.resume else None)
        return self.folder.read_record()

    def say_clips(self) -> str:
        """How many clips were trained on, scored and left out, in words; none where no epoch was left to train."""
        if not self.trained_on.count:
            return ""
        used = (self.clips.train, self.trained_on.count), (self.clips.validation, self.module.num_scored)
        return "; ".join(say_clips(clips, count, f" of {clips.split}") for clips, count in used if clips is not None)


def set_up_training(config: TrainConfig) -> Training:
    """Build everything that a configuration asks for, and start its folder.

    Raises:
        ValueError: what is asked for cannot be, and why.
        OSError: files that cannot be read or written.
        ImportError: a package is missing.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    pair = build_pair(config)
    adapter = build_adapter(config, pair)
    opener = Opener(adapter, pair.data, config.data)
    chosen_on = "test" if config.select_on_test else "val"
    train, judge = opener("train"), opener(chosen_on)
    options = task_options(config, adapter, train)
    task = build_task(config.task, options)
    stage = "test" if config.select_on_test else "validation"
    module = AudioVisualModule(adapter, task, config.optimizer, seed=config.seed, chosen_on=stage)
    folder = RunFolder(config.output)
    record = {
        "task": config.task,
        "options": options,
        "class_names": list(train.class_names),
        "backbones": {modality: fingerprint(getattr(adapter, modality).module) for modality in ("visual", "audio")},
    }
    # Not the best epoch's `save_last`: that would keep only those last epochs that were the best, too.
    last = Checkpoint(folder.checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trained_on = TrainedOn(len(train))
    callbacks: list[Callback] = [BestEpoch(folder, module.monitor, record), last, trained_on]
    if config.optimizer.patience is not None:
        callbacks.append(Patience(module.monitor, mode="max", patience=config.optimizer.patience))
    trainer = make_trainer(config.trainer, config.optimizer, callbacks, folder.new_logs())
    if trainer.is_global_zero:  # of several processes the others would meet what this one wrote
        folder.start(asdict(config))
    if config.resume:
        folder.check_resumable(record)
    clips = Clips(config.data, train=train, validation=judge, seed=config.seed)
    return Training(folder, module, clips, trainer, trained_on, config.resume)


class Loaded(NamedTuple):
    """The best epoch of a run, in eval mode, and what opens the splits of its data set."""

    folder: RunFolder
    config: TrainConfig
    record: dict[str, Any]
    adapter: Adapter
    task: Task
    open: Opener

    def module(self) -> AudioVisualModule:
        """For a Lightning trainer."""
        return AudioVisualModule(self.adapter, self.task, self.config.optimizer)


def load_run(path: str | Path, data: DataConfig | None = None) -> Loaded:
    """Load the best epoch of a run, without its training split.

    Args:
        path: the run's folder.
        data: where the data set is now, or another one for the same task; None is what it was.

    Raises:
        ValueError: no run's folder, or one without a finished epoch; or backbones that are not to be had.
        OSError: files that cannot be read.
        ImportError: a package is missing.
    """
    folder = RunFolder(path)
    entries = folder.read_config()
    try:
        sections = {name: section(**entries.pop(name)) for name, section in SECTIONS.items()}
        config = TrainConfig(**entries, **(sections if data is None else {**sections, "data": data}))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder.config} is not what this version of fastav writes: {error}") from error
    record = folder.read_record()
    pair = build_pair(config)
    adapter = in_chunks(config, folder.load_adapter(config.method, visual=pair.visual, audio=pair.audio))
    folder.check_backbones(
        {modality: fingerprint(getattr(adapter, modality).module) for modality in record["backbones"]}
    )
    task = folder.load_head(build_task(config.task, record["options"]))
    opener = Opener(adapter, pair.data, config.data, record["class_names"])
    return Loaded(folder, config, record, adapter, task, opener)


class Progress(TQDMProgressBar):
    """Lightning's bar, without the number of the logs."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The loss, and the score that chooses the epoch."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return dict(metrics)


def make_trainer(
    config: TrainerConfig, optimizer: OptimizerConfig, callbacks: Sequence[Callback] = (), logs: Path | None = None
) -> Trainer:
    """A Lightning trainer; with a folder for ``logs`` it trains, without it only scores or predicts.

    Raises:
        ValueError: devices or a precision that Lightning does not know or find.
    """
    # Buffers are alike in all processes. Sending them around would tie the processes to one number of batches, and
    # where clips are scored once each they do not have that.
    strategy = DDPStrategy(broadcast_buffers=False) if _count_devices(config) > 1 else "auto"
    try:
        return Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,  # type: ignore[arg-type]
            strategy=strategy,
            max_epochs=optimizer.epochs,
            accumulate_grad_batches=optimizer.accumulate,
            gradient_clip_val=optimizer.clip_norm or None,
            callbacks=[Progress(), *callbacks],
            logger=False if logs is None else CSVLogger(logs.parent, name="", version=logs.name),
            enable_checkpointing=logs is not None,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            enable_model_summary=False,
        )
    except (RuntimeError, TypeError, MisconfigurationException) as error:
        raise ValueError(f"trainer: {error}") from error


class Scored(NamedTuple):
    """Scores of a split.

    Attributes:
        scores: by name, fractions of one.
        clips: how many clips were scored, by all processes.
        is_first: whether this is the process that speaks for all.
    """

    scores: dict[str, float]
    clips: int
    is_first: bool


def score(loaded: Loaded, clips: Clips, config: TrainerConfig) -> Scored:
    """Score the test clips of ``clips``, each once, on as many devices as the configuration asks for."""
    module = loaded.module()
    trainer = make_trainer(config, loaded.config.optimizer)
    trainer.test(module, clips, verbose=False)
    scores = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    return Scored(scores, module.num_scored, trainer.is_global_zero)


def _count_devices(config: TrainerConfig) -> int:
    if isinstance(config.devices, int) and config.devices >= 0:
        return config.devices
    if isinstance(config.devices, list):
        return len(config.devices)
    on_gpus = config.accelerator in ("auto", "gpu", "cuda")  # of all others, "auto" is one
    return torch.accelerator.device_count() if on_gpus else 1
