"""How every op becomes a dispatcher op with a gradient: one schema, one fake and one autograd Function for all.

The op itself is opaque (``torch.library.define`` + ``impl`` + ``register_fake``), so that ``torch.compile`` keeps it
whole, and the ``autograd.Function`` stands outside it. Lists travel through the Function flat, because autograd does
not look into lists; lists of results leave the op as one tensor, because an op's results must not share memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastav.ops._backends import implementation
from fastav.ops._flat import Shape, apart, numel, together

#: Shapes of a list of results, and its dtype.
Results: TypeAlias = tuple[list[Shape], torch.dtype]

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
        outputs: from the lists and settings to the shapes and the dtype of the outputs.
        kept: likewise to what the backward pass wants beside inputs and outputs; None if it wants neither.
    """

    name: str
    lists: tuple[str, ...]
    settings: tuple[str, ...]
    outputs: Callable[..., Results]
    kept: Callable[..., Results] | None = None

    def __post_init__(self) -> None:
        inputs = ", ".join(f"Tensor[]? {name}" for name in self.lists)
        settings = "".join(f", {_SETTINGS[name]} {name}" for name in self.settings)
        backward = f"{self.name}_backward"
        _library.define(f"{self.name}({inputs}{settings}) -> (Tensor, Tensor[])")
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
        flat = _apart([tensor for tensors in lists if tensors is not None for tensor in tensors])
        shapes = self.outputs(*arguments)[0], ([] if self.kept is None else self.kept(*arguments)[0])
        return _Call.apply(self.name, self.lists, lengths, settings, shapes, *flat)

    def _forward(self, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        tensors, settings = self._bind(arguments)
        function = implementation(f"{self.name}_forward", arguments[0][0].device, tensors)
        outputs, kept = function(*tensors.values(), **settings)
        return together(outputs), [together(kept)] if isinstance(kept, Tensor) or kept else []

    def _backward(self, grads: Sequence[Tensor], kept: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
        *inputs, wanted = arguments
        tensors, settings = self._bind(inputs)
        function = implementation(f"{self.name}_backward", inputs[0][0].device, tensors)
        found = function(grads, kept, *tensors.values(), **settings, wanted=wanted)
        return [together(found[name]) for name in wanted]

    def _fake_forward(self, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        first = arguments[0][0]
        results = [self.outputs(*arguments)] + ([] if self.kept is None else [self.kept(*arguments)])
        outputs, *kept = [first.new_empty(sum(map(numel, shapes)), dtype=dtype) for shapes, dtype in results if shapes]
        return outputs, kept

    def _fake_backward(self, grads: Sequence[Tensor], kept: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
        *inputs, wanted = arguments
        lists = dict(zip(self.lists, inputs, strict=False))
        return [lists[name][0].new_empty(sum(t.numel() for t in lists[name])) for name in wanted]

    def _bind(self, arguments: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = dict(zip(self.lists, arguments, strict=False))
        if tensors.get("gate") is not None:
            (tensors["gate"],) = tensors["gate"]
        return tensors, dict(zip(self.settings, arguments[len(self.lists) :], strict=True))


class _Call(torch.autograd.Function):
    """A :class:`ListOp` with its gradient; saves the op's own inputs, and outputs where it keeps more than those."""

    @staticmethod
    def forward(ctx, name, names, lengths, settings, shapes, *flat):
        ctx.call = name, names, lengths, settings
        together, kept = getattr(torch.ops.fastav, name)(*_lists(flat, lengths), *settings)
        outputs = apart(together, shapes[0])
        ctx.save_for_backward(*flat, *(outputs + apart(kept[0], shapes[1]) if kept else ()))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        name, names, lengths, settings = ctx.call
        needs, saved = ctx.needs_input_grad[5:], ctx.saved_tensors
        lists, kept = _lists(saved[: len(needs)], lengths), saved[len(needs) :]
        asked = {n: need for n, need in zip(names, _lists(needs, lengths), strict=True) if need and any(need)}
        found = getattr(torch.ops.fastav, f"{name}_backward")(list(grads), list(kept), *lists, *settings, list(asked))
        results = dict(zip(asked, found, strict=True))
        gradients: list[Tensor | None] = []
        for n, given in zip(names, lists, strict=True):
            tensors = given or []
            if n in asked:
                pieces = apart(results[n], [t.shape for t in tensors])
                gradients += [piece if need else None for piece, need in zip(pieces, asked[n], strict=True)]
            else:
                gradients += [None] * len(tensors)
        return None, None, None, None, None, *gradients


def _apart(flat: list[Tensor]) -> list[Tensor]:
    """The same tensors, those that come again as views: ``torch.compile`` gives a repeated argument one gradient."""
    if not torch.compiler.is_compiling():
        return flat
    found: list[Tensor] = []
    for t in flat:
        found.append(t.view_as(t) if any(t is other for other in found) else t)
    return found


def _lists(flat: Sequence, lengths: Sequence[int | None]) -> list[list | None]:
    """Cut a flat sequence back into lists of the given lengths, None for None."""
    lists: list[list | None] = []
    start = 0
    for length in lengths:
        lists.append(None if length is None else list(flat[start : start + length]))
        start += length or 0
    return lists
