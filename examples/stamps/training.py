"""One plain training loop for all methods and tasks, and their scores."""

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

from examples.stamps.examples import Examples
from examples.stamps.methods import Model
from fastav import backends, set_backend
from fastav.cost import saved_for_backward

LEARNING_RATE = 2e-3
WARM_UP = 0.05  # of all steps
CLIP_NORM = 1.0
READ_OUT = "adapter.read_"  # how the names of a peer's read-out begin


@dataclass
class Run:
    """What one training run of one method gave.

    Attributes:
        model: the weights of the epoch that was best on the validation split.
        seconds_per_epoch: median over the epochs, validation not counted.
        saved_bytes: bytes that one training step saves for backward, per clip.
        losses: training loss of each epoch.
        monitored: validation score of each epoch, the one that chooses among them, in percent.
        scores: by split, all scores of the task's metric, in percent.
        of_clips: each test clip's own score, the one that chooses the epoch, in percent; NaN where it has none.
    """

    model: Model
    seconds_per_epoch: float = 0.0
    saved_bytes: float = 0.0
    losses: list[float] = field(default_factory=list)
    monitored: list[float] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    of_clips: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def train(
    name: str,
    make: Callable[[], Model],
    examples: dict[str, Examples],
    *,
    epochs: int,
    batch: int,
    weight_decay: float,
    seed: int,
    rate: float = LEARNING_RATE,
) -> Run:
    """Train one method on "train", choose its epoch on "validation", score it on every other split.

    Args:
        name: for the progress bar.
        make: makes a new model.
        examples: by split.
        epochs: through all training clips.
        batch: clips in a step, with all their examples.
        weight_decay: of matrices.
        seed: of the weights, the order and dropout.
        rate: learning rate of what the source of tokens learns. Of heads it is always the same, and of read-outs where
            they are not all that it learns.
    """
    torch.manual_seed(seed)
    of_train = examples["train"]
    model = make().to(of_train.split.device)
    optimizer = torch.optim.AdamW(_parameter_groups(model, weight_decay, rate))
    steps = epochs * math.ceil(len(of_train.split) / batch)
    warm_up = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    run = Run(model, saved_bytes=_saved_bytes(model, of_train, batch))
    best, durations = {}, []
    with tqdm(total=steps, desc=f"{name}, seed {seed}", unit="step") as bar:
        for _ in range(epochs):
            model.train()
            start, total = time.perf_counter(), 0.0
            for clips in torch.randperm(len(of_train.split)).split(batch):
                total += _step(model, of_train, _of(of_train, clips), optimizer) * len(clips)
                schedule.step()
                bar.update()
            durations.append(time.perf_counter() - start)
            run.losses.append(total / len(of_train.split))
            found = score(model, examples["validation"])
            run.monitored.append(found[model.task.monitor])
            bar.set_postfix(loss=f"{run.losses[-1]:.3f}", validation=f"{run.monitored[-1]:.1f}")
            if run.monitored[-1] >= max(run.monitored):
                run.scores["validation"] = found
                best = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(best)
    model.eval()
    run.seconds_per_epoch = statistics.median(durations)
    run.scores["test"], run.of_clips = score_clips(model, examples["test"])
    run.scores |= {key: score(model, part) for key, part in examples.items() if key not in ("train", *run.scores)}
    return run


@torch.no_grad()
def score(model: Model, examples: Examples, batch: int = 16) -> dict[str, float]:
    """All scores of the task's metric, in percent."""
    model.eval()
    metric = model.task.metric().to(examples.split.device)
    for clips in torch.arange(len(examples.split)).split(batch):
        index = _of(examples, clips)
        said, _ = model(examples, index)
        model.task.update(metric, said, examples.batch(index))
    return {name: 100 * value.item() for name, value in metric.compute().items()}


@torch.no_grad()
def score_clips(model: Model, examples: Examples) -> tuple[dict[str, float], Tensor]:
    """What :func:`score` gives, and each clip's own score, the one that chooses the epoch, (num_clips,) in percent."""
    model.eval()
    device = examples.split.device
    whole, found = model.task.metric().to(device), []
    for index in examples.of_clips:
        metric = model.task.metric().to(device)
        if len(index):
            said, _ = model(examples, index)
            for one in (whole, metric):
                model.task.update(one, said, examples.batch(index))
        found.append(100 * metric.compute()[model.task.monitor].cpu() if len(index) else torch.tensor(torch.nan))
    return {name: 100 * value.item() for name, value in whole.compute().items()}, torch.stack(found)


@torch.no_grad()
def predict(model: Model, examples: Examples, batch: int = 16) -> dict[str, Tensor]:
    """What the task decodes, for all examples."""
    model.eval()
    parts = [model.task.decode(model(examples, index)[0]) for index in torch.arange(len(examples)).split(batch)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def step_times(model: Model, examples: Examples, batch: int, rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of training steps of a copy of ``model``, by the backend of the ops: those usable here, taking turns."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    names = [name for name in ("native", "reference") if backends()[name].usable]
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in tqdm(range(1 + rounds), "timing steps", leave=False):
        index = _of(examples, (torch.arange(batch) + i * batch) % len(examples.split))
        with torch.no_grad():
            model(examples, index)  # so that none of the backends is the one that waits for the disk
        for name in names:
            set_backend(name)
            start = time.perf_counter()
            _step(model, examples, index, optimizer)
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    set_backend("auto")
    return times


def faster(times: dict[str, list[float]], batch: int) -> str:
    """What :func:`step_times` found, in words."""
    medians = [f"{statistics.median(some) * 1e3:.0f} ms on {name}" for name, some in times.items()]
    if "native" not in times:
        return f"A training step of Mettle takes {medians[0]}; native kernels: {backends()['native'].reason}"
    ratio = statistics.median(b / a for a, b in zip(times["native"], times["reference"], strict=True))
    return (
        f"A training step of Mettle takes {' and '.join(medians)}, {ratio:.1f} times as long: medians of "
        f"{len(times['native'])} rounds of {batch} clips, reading the taps, head and optimizer included."
    )


def _of(examples: Examples, clips: Tensor) -> Tensor:
    """The numbers of all examples of some clips."""
    return torch.cat([examples.of_clips[clip] for clip in clips.tolist()])


def _step(model: Model, examples: Examples, index: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One training step on the examples at ``index``; the loss before it, without the auxiliary one."""
    said, aux_loss = model(examples, index)
    loss = model.task.loss(said, examples.batch(index))
    optimizer.zero_grad()
    (loss + aux_loss).backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP_NORM)
    optimizer.step()
    return loss.item()


def _parameter_groups(model: Model, weight_decay: float, rate: float) -> list[dict]:
    """Matrices decay; queries, norms and biases do not. What the source learns has a learning rate of its own."""
    spared = model.no_weight_decay()
    learned = [name for name, p in model.source.named_parameters() if p.requires_grad]
    beside = any(not name.startswith(READ_OUT) for name in learned)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            of_head = not name.startswith("source.") or (beside and name.startswith(f"source.{READ_OUT}"))
            decay = 0.0 if name in spared or parameter.ndim < 2 else weight_decay
            groups.setdefault((LEARNING_RATE if of_head else rate, decay), []).append(parameter)
    return [{"params": some, "lr": lr, "weight_decay": decay} for (lr, decay), some in groups.items()]


def _saved_bytes(model: Model, examples: Examples, batch: int) -> float:
    """Bytes that autograd keeps for one step's backward, a clip."""
    model = copy.deepcopy(model).train()  # which measures its taps in its first steps; those are to be the training's
    clips = torch.arange(min(batch, len(examples.split)))
    index = _of(examples, clips)

    def forward() -> Tensor:
        said, _ = model(examples, index)
        return model.task.loss(said, examples.batch(index))

    with torch.random.fork_rng():
        return sum(saved_for_backward(forward, model.parameters()).values()) / len(clips)
