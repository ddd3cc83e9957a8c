"""One training step of a method with a task's head, and what of it is whose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastav.backbones import FrozenBackbone
from fastav.cost.memory import Peak, peak
from fastav.cost.saved import saved_for_backward
from fastav.cost.timing import Marks
from fastav.output import AdapterOutput
from fastav.tasks.task import Task

#: What a step's time is spent on, in order.
PARTS = ("backbones", "side branch", "head", "backward", "update")

#: Whose a tensor is that is saved for backward.
PLACES = ("taps", "backbones", "method", "head")


class Step:
    """A training step: forward, loss, backward, update.

    The learning rate is 0, so that every step is the same one; the optimizer is AdamW and does all its work.

    Args:
        method: what gives tokens for a task's head: an adapter or a baseline. It and the task are put into training
            mode.
        task: whose head reads them.
        inputs: the method's two.
        batch: the task's targets.
    """

    def __init__(self, method: nn.Module, task: Task, inputs: tuple[Tensor, Tensor], batch: Mapping[str, Any]) -> None:
        self.method, self.task, self.inputs, self.batch = method.train(), task.train(), inputs, batch
        self.device = inputs[0].device
        self.clips, self.segments = inputs[0].shape[:2]
        self.modules = nn.ModuleList([method, task])
        self.backbones = [m for m in method.modules() if isinstance(m, FrozenBackbone)]
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0)

    def forward(self) -> Tensor:
        """The loss."""
        return self.loss(self.method(*self.inputs))

    def loss(self, out: AdapterOutput) -> Tensor:
        """The loss of what the method gave."""
        return self.task.loss(self.task(out, self.batch), self.batch) + out.aux_loss

    def learn(self, loss: Tensor) -> None:
        """What follows a loss."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> None:
        """The whole step."""
        self.learn(self.forward())

    @contextmanager
    def inference(self) -> Iterator[Callable[[], Any]]:
        """Forward alone, in eval mode: gives a call that gives what the head says."""
        self.modules.eval()
        try:
            with torch.no_grad():
                yield lambda: self.task(self.method(*self.inputs), self.batch)
        finally:
            self.modules.train()

    @property
    def trainable(self) -> int:
        """Number of trainable parameters, the head's included."""
        return sum(p.numel() for p in self.parameters)

    @property
    def total(self) -> int:
        """Number of all parameters, the backbones' and the head's included."""
        return sum(p.numel() for p in self.modules.parameters())

    def parts(self) -> dict[str, float]:
        """Run one step; seconds of each of :data:`PARTS`, one after the other.

        The backbones' part lasts until the later one has ended, with all that stands in them.
        """
        marks = Marks(self.device)  # which waits for the device
        with ExitStack() as hooks:
            for backbone in self.backbones:
                hooks.callback(backbone.register_forward_hook(lambda *_: marks.set("backbones")).remove)
            marks.set("start")
            out = self.method(*self.inputs)
            marks.set("side branch")
            loss = self.loss(out)
            marks.set("head")
            loss.backward()
            marks.set("backward")
            self.optimizer.step()
            self.optimizer.zero_grad()
            marks.set("update")
        times, found, last = marks.since("start"), {}, 0.0
        for part in PARTS:
            found[part], last = times[part] - last, times[part]
        return found

    def saved(self) -> dict[str, int]:
        """Bytes that one step keeps for backward, by place; parameters, buffers and inputs are not counted.

        Places are the backbones' taps, whatever else is saved while a backbone runs, what the method saves, wherever it
        stands, and the head with its loss.
        """
        owner = _Owner(self)
        own = [*self.modules.parameters(), *self.modules.buffers(), *self.inputs]
        with owner.watching():
            found = saved_for_backward(self.forward, own, owner.of)
        return {place: found.get(place, 0) for place in PLACES}

    def peak(self) -> Peak:
        """Peak memory of a step."""
        return peak(self, self.device)

    def forward_peak(self) -> Peak:
        """Peak memory of forward alone."""
        with self.inference() as infer:
            return peak(infer, self.device)


class _Owner:
    """Knows, while a step runs forward, whose turn it is."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._taps: set[int] = set()
        self._inside = dict.fromkeys(PLACES, 0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        places: dict[nn.Module, str] = dict.fromkeys(self._step.backbones, "backbones")
        places |= dict.fromkeys(_beside(self._step.method), "method")
        places[self._step.task] = "head"
        with ExitStack() as hooks:
            for module, place in places.items():
                hooks.callback(module.register_forward_pre_hook(partial(self._enter, place)).remove)
                hooks.callback(module.register_forward_hook(partial(self._leave, place)).remove)
            yield

    def _enter(self, place: str, module: nn.Module, args: Any) -> None:
        self._inside[place] += 1

    def _leave(self, place: str, module: nn.Module, args: Any, output: Any) -> None:
        if place != "head":  # after which nothing but its loss follows
            self._inside[place] -= 1
        if place == "backbones":
            self._taps |= {tap.untyped_storage().data_ptr() for tap in output}

    def of(self, tensor: Tensor) -> str:
        if self._inside["head"]:
            return "head"
        if tensor.untyped_storage().data_ptr() in self._taps:
            return "taps"
        return "backbones" if self._inside["backbones"] and not self._inside["method"] else "method"


def _beside(method: nn.Module) -> Iterator[nn.Module]:
    """A method's modules that are no part of its backbones, wherever they are called."""
    for child in method.children():
        if not isinstance(child, FrozenBackbone):
            yield from child.modules()
