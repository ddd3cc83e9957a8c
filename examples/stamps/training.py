"""One plain training loop for all methods, and their scores."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.stamps.methods import Mettle
from examples.stamps.taps import Split
from fastav import backends, set_backend
from fastav.metrics import LocalizationScores
from fastav.tasks import decode_localization, localization_loss

BATCH = 16  # clips
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.05  # of all steps
CLIP_NORM = 1.0


@dataclass
class Run:
    """What one training run of one method gave.

    Attributes:
        model: the weights of the epoch that was best on the validation split.
        seconds_per_epoch: median over the epochs, validation not counted.
        saved_bytes: bytes that one training step saves for backward, per clip.
        losses: training loss of each epoch.
        accuracies: validation accuracy of each epoch.
        scores: by split, the scores of ``fastav.metrics.LocalizationScores``, in percent.
    """

    model: nn.Module
    seconds_per_epoch: float = 0.0
    saved_bytes: float = 0.0
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def train(name: str, make: Callable[[], nn.Module], splits: dict[str, Split], *, epochs: int, seed: int) -> Run:
    """Train one method on "train", choose its epoch on "validation", score it on every split."""
    torch.manual_seed(seed)
    model, split = make(), splits["train"]
    optimizer = torch.optim.AdamW(_parameter_groups(model), LEARNING_RATE)
    steps = epochs * math.ceil(len(split) / BATCH)
    warm_up = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    run = Run(model, saved_bytes=_saved_bytes(model, split))
    best, durations = {}, []
    with tqdm(total=steps, desc=f"{name}, seed {seed}", unit="step") as bar:
        for _ in range(epochs):
            model.train()
            start, total = time.perf_counter(), 0.0
            for index in torch.randperm(len(split)).split(BATCH):
                total += _step(model, split, index, optimizer) * len(index)
                schedule.step()
                bar.update()
            durations.append(time.perf_counter() - start)
            run.losses.append(total / len(split))
            run.accuracies.append(score(model, splits["validation"])["accuracy"])
            bar.set_postfix(loss=f"{run.losses[-1]:.3f}", validation=f"{run.accuracies[-1]:.1f}")
            if run.accuracies[-1] >= max(run.accuracies):
                best = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(best)
    model.eval()
    run.seconds_per_epoch = sorted(durations)[len(durations) // 2]
    run.scores = {key: score(model, part) for key, part in splits.items() if key != "train"}
    return run


def step_times(model: nn.Module, split: Split, rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of training steps of a copy of ``model``, by the backend of the ops: those usable here, taking turns."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(_parameter_groups(model), LEARNING_RATE)
    names = [name for name in ("native", "reference") if backends()[name].usable]
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in tqdm(range(1 + rounds), "timing steps", leave=False):
        index = (torch.arange(BATCH) + i * BATCH) % len(split)
        for name in names:
            set_backend(name)
            start = time.perf_counter()
            _step(model, split, index, optimizer)
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    set_backend("auto")
    return times


def faster(times: dict[str, list[float]]) -> str:
    """What :func:`step_times` found, in words."""
    medians = [f"{statistics.median(some) * 1e3:.0f} ms on {name}" for name, some in times.items()]
    if "native" not in times:
        return f"A training step of Mettle takes {medians[0]}; native kernels: {backends()['native'].reason}"
    ratio = statistics.median(b / a for a, b in zip(times["native"], times["reference"], strict=True))
    return (
        f"A training step of Mettle takes {' and '.join(medians)}, {ratio:.1f} times as long: medians of "
        f"{len(times['native'])} rounds of {BATCH} clips, reading the taps, head and optimizer included."
    )


@torch.no_grad()
def predict(model: nn.Module, split: Split) -> Tensor:
    """Labels (num_clips, 10) of every second."""
    model.eval()
    batches = tqdm(torch.arange(len(split)).split(BATCH), "scoring", delay=1.0, leave=False)
    return torch.cat([decode_localization(model(split, index)) for index in batches])


def score(model: nn.Module, split: Split) -> dict[str, float]:
    """Scores in percent."""
    scores = LocalizationScores(split.clips.material.num_classes)
    scores.update(predict(model, split), split.labels, split.mismatched)
    return {name: 100 * value.item() for name, value in scores.compute().items()}


def _step(model: nn.Module, split: Split, index: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One training step on the clips at ``index``; the loss before it."""
    loss = localization_loss(model(split, index), split.labels[index])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP_NORM)
    optimizer.step()
    return loss.item()


def _parameter_groups(model: nn.Module) -> list[dict]:
    """Matrices decay; queries, norms and biases do not."""
    spared = model.no_weight_decay() if isinstance(model, Mettle) else set()
    groups: list[dict] = [{"params": [], "weight_decay": WEIGHT_DECAY}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name in spared or parameter.ndim < 2]["params"].append(parameter)
    return groups


def _saved_bytes(model: nn.Module, split: Split) -> float:
    """Count what autograd keeps for one step's backward, every storage once, parameters not counted."""
    model = copy.deepcopy(model)  # which measures its taps in its first steps; those are to be the training's
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    index = torch.arange(min(BATCH, len(split)))
    model.train()
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = localization_loss(model(split, index), split.labels[index])
    del loss
    return sum(sizes.values()) / len(index)
