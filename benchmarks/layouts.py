"""Lists of tensors without the tensors: shapes, and how they lie in memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Makes a flat tensor of so many elements of a dtype; random numbers have the standard deviation given last.
New = Callable[[int, torch.dtype, float], Tensor]

CONTIGUOUS = 16  # elements between the beginnings of two results in one buffer are a multiple of this


@dataclass(frozen=True)
class Entries:
    """A list of tensors without the tensors.

    Attributes:
        shapes: one shape an entry.
        layout: how they lie in memory: ``"own"``, a storage each; ``"flat"``, one after the other in one, as
            ``torch.cat(...).split`` leaves them; ``"results"``, aligned in one buffer, as the kernels return them;
            ``"first rows"`` and ``"last rows"``, the rows that such results begin or end with;
            ``"columns"``, side by side in one matrix of a row a sample; ``"prefix"``, a storage each, with one row
            before each sample's rows, as a ViT's class token is.
        dtype: ``"taps"``, ``"learned"`` or ``"mask"``: which of a case's dtypes it has.
        scale: the standard deviation of random values.
        cut: rows of the results that are not among the first or last ones.
    """

    shapes: tuple[tuple[int, ...], ...]
    layout: str = "own"
    dtype: str = "learned"
    scale: float = 1.0
    cut: int = 0

    def tensors(self, dtype: torch.dtype, new: New) -> list[Tensor]:
        """The list, in memory that ``new`` makes."""
        if self.layout == "own":
            return [new(math.prod(s), dtype, self.scale).view(s) for s in self.shapes]
        if self.layout == "prefix":
            return [new(b * (n + 1) * d, dtype, self.scale).view(b, n + 1, d)[:, 1:] for b, n, d in self.shapes]
        if self.layout == "columns":
            sizes = [math.prod(s[1:]) for s in self.shapes]
            matrix = new(self.shapes[0][0] * sum(sizes), dtype, self.scale).view(self.shapes[0][0], -1)
            return [c.unflatten(1, s[1:]) for c, s in zip(matrix.split(sizes, 1), self.shapes, strict=True)]
        if self.layout in ("first rows", "last rows"):
            whole = replace(self, shapes=tuple((b, r + self.cut, d) for b, r, d in self.shapes), layout="results")
            start = 0 if self.layout == "first rows" else self.cut
            return [t[:, start : start + s[1]] for t, s in zip(whole.tensors(dtype, new), self.shapes, strict=True)]
        step = {"flat": 1, "results": CONTIGUOUS}[self.layout]
        sizes = [math.prod(s) for s in self.shapes]
        room = [-(-size // step) * step for size in sizes]
        parts = new(sum(room), dtype, self.scale).split(room)
        return [p[:size].view(s) for p, size, s in zip(parts, sizes, self.shapes, strict=True)]


def empty(numel: int, dtype: torch.dtype, scale: float) -> Tensor:
    """Untouched memory on the CPU, which costs nothing."""
    return torch.empty(numel, dtype=dtype)


def random(device: torch.device | str, seed: int = 0) -> New:
    """Normal numbers, or a mask of about two thirds True, always the same for a seed."""
    generator = torch.Generator(device).manual_seed(seed)

    def new(numel: int, dtype: torch.dtype, scale: float) -> Tensor:
        if dtype == torch.bool:
            return torch.rand(numel, generator=generator, device=device) > 0.33
        wide = torch.promote_types(dtype, torch.float32)
        return torch.randn(numel, generator=generator, device=device, dtype=wide).mul_(scale).to(dtype)

    return new


def short(dtype: torch.dtype) -> str:
    """``"bf16"``, ``"fp16"``, ``"fp32"``, ``"fp64"``, and Triton's names of the others that tensors here have."""
    return {
        torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64",
        torch.bool: "i1", torch.int32: "i32", torch.int64: "i64",
    }[dtype]  # fmt: skip
