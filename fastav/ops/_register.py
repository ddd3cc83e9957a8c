"""How every op becomes a dispatcher op with a gradient: one schema, one fake and one autograd Function for all.

The op itself is opaque (``torch.library.define`` + ``impl`` + ``register_fake``), so that ``torch.compile`` keeps it
whole, and the ``autograd.Function`` stands outside it. Lists travel through the Function flat, because autograd does
not look into lists.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastav.ops._backends import implementation

_library = torch.library.Library("fastav", "DEF")

#: What the ops' settings are in a schema.
_SETTINGS = {
    "activation": "str?",
    "eps": "float",
    "gate_kind": "str?",
    "norm": "str",
    "scale": "float?",
    "stack": "bool",
}


@dataclass(frozen=True)
class ListOp:
    """One op over lists of tensors, registered as ``fastav::<name>`` and ``fastav::<name>_backward``.

    Attributes:
        name: the op's name, and that of its implementation in each backend.
        lists: its tensor arguments in order, each a list or None; ``"gate"`` travels as a list of one.
        settings: its other arguments, by name.
        fake: from the lists and settings to empty outputs, as ``register_fake`` wants it.
        fake_kept: likewise to what the backward pass wants beside inputs and outputs; None for an op that wants neither.
    """

    name: str
    lists: tuple[str, ...]
    settings: tuple[str, ...]
    fake: Callable[..., list[Tensor]]
    fake_kept: Callable[..., list[Tensor]] | None = None

    def __post_init__(self) -> None:
        inputs = ", ".join(f"Tensor[]? {name}" for name in self.lists)
        settings = "".join(f", {_SETTINGS[name]} {name}" for name in self.settings)
        backward = f"{self.name}_backward"
        _library.define(f"{self.name}({inputs}{settings}) -> (Tensor[], Tensor[])")
        _library.define(f"{backward}(Tensor[] grads, Tensor[] kept, {inputs}{settings}, str[] wanted) -> Tensor[]")
        # One implementation for all devices: the choice of a backend is made inside, at each call.
        _library.impl(self.name, self._forward, "CompositeExplicitAutograd")
        _library.impl(backward, self._backward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastav::{self.name}", self._fake_forward, lib=_library)
        torch.library.register_fake(f"fastav::{backward}", self._fake_backward, lib=_library)

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Call the op, differentiably, with all its lists and settings in order."""
        lists, settings = arguments[: len(self.lists)], arguments[len(self.lists) :]
        lengths = tuple(None if tensors is None else len(tensors) for tensors in lists)
        flat = [tensor for tensors in lists if tensors is not None for tensor in tensors]
        return _Call.apply(self.name, self.lists, lengths, settings, *flat)

    def _forward(self, *arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
        tensors, settings = self._bind(arguments)
        function = implementation(f"{self.name}_forward", arguments[0][0].device, tensors)
        return function(*tensors.values(), **settings)

    def _backward(self, grads: Sequence[Tensor], kept: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
        *inputs, wanted = arguments
        tensors, settings = self._bind(inputs)
        function = implementation(f"{self.name}_backward", inputs[0][0].device, tensors)
        found = function(grads, kept, *tensors.values(), **settings, wanted=wanted)
        return [grad for name in wanted for grad in found[name]]

    def _fake_forward(self, *arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
        return self.fake(*arguments), [] if self.fake_kept is None else self.fake_kept(*arguments)

    def _fake_backward(self, grads: Sequence[Tensor], kept: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
        *inputs, wanted = arguments
        lists = dict(zip(self.lists, inputs, strict=False))
        return [tensor.new_empty(tensor.shape) for name in wanted for tensor in lists[name]]

    def _bind(self, arguments: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = dict(zip(self.lists, arguments, strict=False))
        if tensors.get("gate") is not None:
            (tensors["gate"],) = tensors["gate"]
        return tensors, dict(zip(self.settings, arguments[len(self.lists) :], strict=True))


class _Call(torch.autograd.Function):
    """A :class:`ListOp` with its gradient; saves the op's own inputs, and outputs only where it keeps more than those."""

    @staticmethod
    def forward(ctx, name, names, lengths, settings, *flat):
        ctx.call = name, names, lengths, settings
        outputs, kept = getattr(torch.ops.fastav, name)(*_lists(flat, lengths), *settings)
        ctx.save_for_backward(*flat, *(outputs + kept if kept else ()))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        name, names, lengths, settings = ctx.call
        needs, saved = ctx.needs_input_grad[4:], ctx.saved_tensors
        flat, kept = saved[: len(needs)], saved[len(needs) :]
        wanted = [n for n, asked in zip(names, _lists(needs, lengths), strict=True) if asked and any(asked)]
        backward = getattr(torch.ops.fastav, f"{name}_backward")
        found = iter(backward(list(grads), list(kept), *_lists(flat, lengths), *settings, wanted))
        gradients = []
        for n, asked in zip(names, _lists(needs, lengths), strict=True):
            for need in asked or ():
                gradient = next(found) if n in wanted else None
                gradients.append(gradient if need else None)
        return None, None, None, None, *gradients


def _lists(flat: Sequence, lengths: Sequence[int | None]) -> list[list | None]:
    """Cut a flat sequence back into lists of the given lengths, None for None."""
    lists: list[list | None] = []
    start = 0
    for length in lengths:
        lists.append(None if length is None else list(flat[start : start + length]))
        start += length or 0
    return lists
