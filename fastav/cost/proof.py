"""Whether a method is what it claims to be: looked at before its cost is measured."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastav.backbones.blocks import find_blocks
from fastav.cost.step import Step

#: By how much the loss' own change may miss what the gradient says, as a share of what its terms say. With so small a
#: shift, central differences in float64 lose some 1e-7 of it to rounding. ReLUs whose kink lies in between count more:
#: LAVISH on Swin-V2-L has three million of them, and with a shift of 1e-8 was 1.2e-5 off, with this one 1e-9.
TOLERANCE = 1e-5
SHIFT = 1e-9


class WrongError(AssertionError):
    """A method is not what it claims to be."""


def check(step: Step) -> dict[str, int]:
    """Check a method on the few clips of a step, in a float64 copy in which whatever starts at zero is drawn.

    Along a random direction of all that trains, the loss must change as its gradient says: a gradient that is missing,
    or that comes another way than forward went, would not. And gradients must run through the backbones, or not, as the
    method claims.

    Args:
        step: in training mode; it is not changed.

    Returns:
        How many of the backbones' blocks gradients run through, and how many blocks there are: "reached" and "blocks".

    Raises:
        WrongError: says what does not hold.
    """
    exact = _exact(step)
    exact.forward()  # adapters measure their taps' statistics, once
    reached = blocks_reached(exact)
    through = bool(getattr(step.method, "through", False))
    if bool(reached["reached"]) != through:
        raise WrongError(f"gradients run through {reached['reached']} blocks, its `through` is {through}")
    gradients = torch.autograd.grad(exact.forward(), exact.parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in exact.parameters]
    terms = [(g * d).sum().item() for g, d in zip(gradients, direction, strict=True) if g is not None]
    change = (_shifted(exact, direction, SHIFT) - _shifted(exact, direction, -SHIFT)) / (2 * SHIFT)
    if abs(change - sum(terms)) > TOLERANCE * sum(map(abs, terms)):
        raise WrongError(f"in a random direction its loss changes by {change:.6g}, its gradient says {sum(terms):.6g}")
    if not any(terms):
        raise WrongError("nothing that it trains has a gradient")
    return reached


def blocks_reached(step: Step) -> dict[str, int]:
    """Run one forward and backward; how many blocks there are, and into how many outputs a gradient comes."""
    found: set[tuple[int, str]] = set()
    count = 0

    def note(block: tuple[int, str], module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: found.add(block) if gradient.any() else None)

    with ExitStack() as hooks:
        for number, backbone in enumerate(step.backbones):
            names = find_blocks(backbone.module)
            count += len(names)
            for name in names:
                hook = partial(note, (number, name))
                hooks.callback(backbone.module.get_submodule(name).register_forward_hook(hook).remove)
        step.forward().backward()
    step.optimizer.zero_grad()
    return {"reached": len(found), "blocks": count}


def _exact(step: Step) -> Step:
    """A copy in float64, without dropout."""
    method, task = copy.deepcopy(step.method).double(), copy.deepcopy(step.task).double()
    inputs = tuple(x.double() for x in step.inputs)
    exact = Step(method, task, (inputs[0], inputs[1]), step.batch)
    task.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in exact.parameters:
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return exact


@torch.no_grad()
def _shifted(step: Step, direction: list[Tensor], by: float) -> float:
    for p, d in zip(step.parameters, direction, strict=True):
        p.add_(d, alpha=by)
    loss = step.forward().item()
    for p, d in zip(step.parameters, direction, strict=True):
        p.sub_(d, alpha=by)
    return loss
