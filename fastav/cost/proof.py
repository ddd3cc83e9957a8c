"""Whether a method is what it claims to be: looked at before its cost is measured."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastav.adapters import Adapter
from fastav.backbones.blocks import find_blocks
from fastav.cost.step import Step
from fastav.ops._backends import using
from fastav.standardization import TapStandardization

#: By how much the loss' own change may miss what the gradient says, as a share of what its terms say. With so small a
#: shift, central differences in float64 lose some 1e-7 of it to rounding. ReLUs whose kink lies in between count more:
#: LAVISH on Swin-V2-L has three million of them, and with a shift of 1e-8 was 1.2e-5 off, with this one 1e-9.
TOLERANCE = 1e-5
SHIFT = 1e-9


#: By how much gradients by the ops that are timed may miss those by the reference ops, in float32: both add up in it,
#: if not in the same order.
KERNEL_TOLERANCE = 1e-3

#: The same for taps in 16 bits, in units of their dtype's eps. GPUs multiply them by factors that are rounded to it:
#: queries, probabilities, what comes down from above; and the scores' gradients are differences of two such sums. With
#: all that rounded on a CPU, in bfloat16, gradients of Mettle were 0.8 eps off and those of MoLT 3.5.
ROUNDED_TOLERANCE = 8


class WrongError(AssertionError):
    """A method is not what it claims to be."""


def check(step: Step) -> dict[str, int]:
    """Check a method on the few clips of a step, in a float64 copy in which whatever is zero is drawn.

    Along a random direction of all that trains, the loss must change as its gradient says: a gradient that is missing,
    or that comes another way than forward went, would not. Every matrix that trains must have a gradient. Gradients
    must run through the backbones, or not, as the method claims. And what fastav's own ops give, in float32 and in the
    dtype that is timed, must be what the reference gives in the same dtype, as kernels need not serve float64.

    Args:
        step: in training mode; it is not changed.

    Returns:
        How many of the backbones' blocks gradients run through, and how many blocks there are: "reached" and "blocks".

    Raises:
        WrongError: says what does not hold.
    """
    with using("auto"):  # a backend that was chosen need not serve float64
        reached = _in_float64(step)
    if isinstance(step.method, Adapter):
        _by_kernels(step, torch.float32, KERNEL_TOLERANCE)
        if (dtype := step.method.visual.dtype) != torch.float32:
            _by_kernels(step, dtype, ROUNDED_TOLERANCE * torch.finfo(dtype).eps)
    return reached


def _in_float64(step: Step) -> dict[str, int]:
    exact = _drawn(step, torch.float64)
    exact.forward()  # statistics are measured, once: gradients take them for constants
    for module in exact.modules.modules():
        if isinstance(module, TapStandardization):
            module.follow = False
    reached = blocks_reached(exact)
    through = bool(getattr(step.method, "through", False))
    if bool(reached["reached"]) != through:
        raise WrongError(f"gradients run through {reached['reached']} blocks, its `through` is {through}")
    gradients = torch.autograd.grad(exact.forward(), exact.parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in exact.parameters]
    terms = [(g * d).sum().item() for g, d in zip(gradients, direction, strict=True) if g is not None]
    change = (_shifted(exact, direction, SHIFT) - _shifted(exact, direction, -SHIFT)) / (2 * SHIFT)
    names = {id(p): name.partition(".")[2] for name, p in exact.modules.named_parameters()}
    for p, g in zip(exact.parameters, gradients, strict=True):
        if g is not None and not g.isfinite().all():
            raise WrongError(f"the gradient of {names[id(p)]} is not finite")
    if not abs(change - sum(terms)) <= TOLERANCE * sum(map(abs, terms)):  # a loss that is not a number fails too
        raise WrongError(f"in a random direction its loss changes by {change:.6g}, its gradient says {sum(terms):.6g}")
    for p, g in zip(exact.parameters, gradients, strict=True):
        if p.ndim > 1 and (g is None or not g.any()):  # of a bias before a norm it may well be zero
            raise WrongError(f"{names[id(p)]}, which it trains, has no gradient")
    return reached


def _by_kernels(step: Step, dtype: torch.dtype, tolerance: float) -> None:
    """Compare gradients with those by the reference ops, with backbones of one dtype."""
    copied = _drawn(step, None)
    for backbone in copied.backbones:
        backbone.to(dtype)
    copied.forward()  # adapters measure their taps' statistics, once
    found = torch.autograd.grad(copied.forward(), copied.parameters)
    with using("reference"):
        wanted = torch.autograd.grad(copied.forward(), copied.parameters)
    if not (off := distance(found, wanted)) <= tolerance:  # not a number fails too
        raise WrongError(
            f"its gradients, with taps of {dtype}, are {off:.2g} of their size off those by the reference ops, allowed "
            f"are {tolerance:.2g}"
        )


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """How far some gradients, as one vector, are from those that are wanted, as a share of these."""
    off = torch.stack([(a - b).double().norm() for a, b in zip(found, wanted, strict=True)]).norm()
    return (off / torch.stack([b.double().norm() for b in wanted]).norm()).item()


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


def _drawn(step: Step, dtype: torch.dtype | None) -> Step:
    """A copy without dropout and without zeros, behind which nothing would show; a new Swin V2's norms are zero too."""
    method, task = copy.deepcopy(step.method).to(dtype=dtype), copy.deepcopy(step.task).to(dtype=dtype)
    inputs = tuple(x.to(dtype=dtype or x.dtype) for x in step.inputs)
    copied = Step(method, task, (inputs[0], inputs[1]), step.batch)
    task.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in copied.modules.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return copied


@torch.no_grad()
def _shifted(step: Step, direction: list[Tensor], by: float) -> float:
    for p, d in zip(step.parameters, direction, strict=True):
        p.add_(d, alpha=by)
    loss = step.forward().item()
    for p, d in zip(step.parameters, direction, strict=True):
        p.sub_(d, alpha=by)
    return loss
