"""An adapter and a task as a Lightning module."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastav.adapters import Adapter
from fastav.output import AdapterOutput
from fastav.tasks.task import Batch, Task
from fastav.training.clips import Clips, say_none
from fastav.training.config import OptimizerConfig
from fastav.training.errors import RunError

try:
    from lightning.pytorch import LightningModule
    from torchmetrics import Metric, SumMetric
except ImportError as error:
    raise ImportError('fastav.training needs lightning: pip install "fastav[training]"') from error


class AudioVisualModule(LightningModule):
    """Trains an adapter and a task's head beside two frozen backbones.

    Checkpoints hold the adapter and the head; the backbones are not in ``state_dict()``. It logs ``train/loss``,
    ``train/aux_loss`` (both are minimised, summed) and each score of the task as ``validation/...`` or ``test/...``.

    Args:
        adapter: the adapter, with its backbones.
        task: the task, whose ``monitor`` chooses the epoch.
        optimizer: learning rate, weight decay, warm-up.
        seed: every step's random numbers start from it and the step's place, so that a resumed run draws those that an
            unbroken one would have drawn.
        chosen_on: the split that validation steps see, "validation" or, for a run that says so, "test".

    Attributes:
        num_scored: clips that were counted in the last scores, of all processes.
        num_steps: of the optimizer, in the whole training.
    """

    #: With few clips on many devices, some device may have none to score.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self, adapter: Adapter, task: Task, optimizer: OptimizerConfig, *, seed: int = 0, chosen_on: str = "validation"
    ) -> None:
        super().__init__()
        self.adapter, self.task = adapter, task
        self.optimizer_config, self.seed, self.chosen_on = optimizer, seed, chosen_on
        self.scores, self.counted, self.num_scored = task.metric(), SumMetric(), 0
        # Of an epoch's clips, in metrics, which all processes exchange: one whose clips are all left out has logged
        # nothing, and Lightning's own means would wait for it.
        self.loss, self.aux_loss = _MeanOverClips(), _MeanOverClips()
        self.num_steps = self.resumed_steps = 0

    @property
    def monitor(self) -> str:
        """Name, among what is logged, of the score that chooses the epoch."""
        return f"{self.chosen_on}/{self.task.monitor}"

    def forward(self, batch: Batch) -> tuple[AdapterOutput, Any]:
        """What the adapter and the task's head make of a batch with ``visual`` and ``audio``."""
        clips = torch.arange(len(batch["visual"]), device=batch["visual"].device)
        visual, audio = (
            batch[name] if source is clips else batch[name][source]
            for name, source in zip(("visual", "audio"), self.task.pairing(batch, clips), strict=True)
        )
        out = self.adapter(visual, audio)
        return out, self.task(out, batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how many steps the learning rate's schedule has."""
        checkpoint["num_steps"] = self.num_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember how many it had."""
        self.resumed_steps = checkpoint["num_steps"]

    def on_train_start(self) -> None:
        """Refuse to go on with a schedule of another length, on which the learning rate would jump.

        Raises:
            RunError: the run has another number of steps now.
        """
        if self.resumed_steps not in (0, self.num_steps):
            raise RunError(
                f"the run was to have {self.resumed_steps} steps and would have {self.num_steps} now, so that its "
                f"learning rate would jump: resume it with as many clips and devices as it was started with"
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Start this step's random numbers."""
        step = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(step).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The loss of one batch, the adapter's own term included."""
        if not batch:  # all its clips were left out; the other processes wait for what they exchange with this one
            if self.adapter.distillation.measuring:
                self.adapter.distillation.measure(())
            return sum((p.sum() * 0 for p in self.parameters() if p.requires_grad), torch.zeros(()))
        out, said = self(batch)
        loss = self.task.loss(said, batch)
        self.loss.update(loss.detach(), len(batch["id"]))
        self.aux_loss.update(out.aux_loss.detach(), len(batch["id"]))
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=len(batch["id"]))
        # Not every task reads all that the adapter gives, but several processes wait for gradients of all parameters.
        # Sums of no clips are zero whatever the numbers are, and so are their gradients.
        unread = sum(part[:0].sum() for part in (out.visual, out.audio, *out.features))
        return loss + out.aux_loss + unread

    def on_train_batch_end(self, *_: Any) -> None:
        """Refuse an epoch without clips, before its weights are scored and kept.

        Raises:
            RunError: all clips of all processes were left out.
        """
        if self.trainer.is_last_batch and not self.loss.compute()[1]:
            raise self._nothing("train", "train on")

    def on_train_epoch_end(self) -> None:
        """Log the epoch's losses, the mean over all processes' clips."""
        for name, metric in (("loss", self.loss), ("aux_loss", self.aux_loss)):
            self.log(f"train/{name}", metric.compute()[0])
            metric.reset()

    def on_validation_start(self) -> None:
        """Refuse weights that training has spoilt: their scores would look like any others.

        Raises:
            RunError: some are not finite.
        """
        spoilt = [name for name, p in self.named_parameters() if p.requires_grad and not p.isfinite().all()]
        if spoilt:
            raise RunError(
                f"epoch {self.current_epoch + 1}: {len(spoilt)} of the trained weights are not finite any more, "
                f"{spoilt[0]} among them: give a lower --optimizer.lr, or --trainer.precision 32-true"
            )

    def on_validation_epoch_start(self) -> None:
        """Score from nothing."""
        self.scores.reset()
        self.counted.reset()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Count one batch. Nothing is exchanged with other processes here: they may have fewer batches."""
        if batch:
            self.task.update(self.scores, self(batch)[1], batch)
            self.counted.update(len(batch["id"]))

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the split, over all processes."""
        self._log_scores(self.chosen_on)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Log the scores of the split, over all processes."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        self.num_scored = int(self.counted.compute())
        if not self.num_scored and not self.trainer.sanity_checking:  # which looks at the first clips alone
            raise self._nothing("test" if self.trainer.testing else "validation", "score")
        for name, value in self.scores.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=name == self.task.monitor)

    def _nothing(self, stage: str, purpose: str) -> RunError:
        """What to raise, in all processes, where a stage has no clips."""
        clips = self.trainer.datamodule  # type: ignore[attr-defined]
        split, check = f"the {stage} loader", "fastav check-data NAME ROOT --deep"
        if isinstance(clips, Clips):
            split, check = clips.describe(stage)
        when = "" if stage == "test" else f"epoch {self.current_epoch + 1}: "
        return RunError(when + say_none(split, check, purpose))

    def predict_step(self, batch: Batch, _: int) -> dict[str, Tensor] | None:
        """The task's predictions, by name, B first; None of a batch whose clips were all left out."""
        return None if not batch else self.task.decode(self(batch)[1])

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate rises over the warm-up and falls on a cosine to zero at the last step."""
        config, steps = self.optimizer_config, int(self.trainer.estimated_stepping_batches)
        self.num_steps = steps
        optimizer = torch.optim.AdamW(parameter_groups(self.adapter, self.task, config.weight_decay), config.lr)
        warm_up = max(1, round(config.warm_up * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _MeanOverClips(Metric):
    """The mean over all processes' clips; torchmetrics' own leaves NaNs out, and waits for the device to find them."""

    full_state_update = False
    total: Tensor
    clips: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("clips", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, mean: Tensor, clips: int) -> None:
        """Count a batch: its mean, and of how many clips that is."""
        self.total += mean * clips
        self.clips += clips

    def compute(self) -> Tensor:
        """The mean, NaN of no clips, and of how many clips it is."""
        return torch.stack([self.total / self.clips, self.clips])


def parameter_groups(adapter: Adapter, task: Task, weight_decay: float) -> list[dict[str, Any]]:
    """An optimizer's two groups: matrices decay; biases, norms and ``adapter.no_weight_decay()`` do not."""
    spared = adapter.no_weight_decay()
    named = [*((name, p) for name, p in adapter.named_parameters()), *(("", p) for p in task.parameters())]
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for name, parameter in named:
        if parameter.requires_grad:
            groups[name in spared or parameter.ndim < 2]["params"].append(parameter)
    return groups
