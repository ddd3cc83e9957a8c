"""Gradient checkpointing of a backbone's blocks, with all that stands in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Inside(Protocol):
    """Makes what stands in a backbone's blocks, while it lasts: in all of them, or in one that runs again."""

    def __call__(self, *, only: nn.Module | None = None) -> AbstractContextManager[None]:
        """Of ``only`` that block, or of all."""


def nothing(*, only: nn.Module | None = None) -> AbstractContextManager[None]:
    """Nothing stands in the blocks."""
    return nullcontext()


@contextmanager
def checkpointed(module: nn.Module, blocks: Iterable[str], inside: Inside) -> Iterator[None]:
    """While it lasts, let some blocks of a backbone keep what goes into them alone, and run again in backward.

    Args:
        module: the backbone.
        blocks: names of the blocks.
        inside: entered with a block while it runs again.
    """
    found = {name: module.get_submodule(name) for name in blocks}
    try:
        for name, block in found.items():
            module.set_submodule(name, _Twice(block, inside))
        yield
    finally:
        for name, block in found.items():
            module.set_submodule(name, block)


class _Twice(nn.Module):
    """Stands for a block: hooks on it see the block run once, hooks in the block whenever it does."""

    def __init__(self, block: nn.Module, inside: Inside) -> None:
        super().__init__()
        self.block, self.inside = block, inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return run_twice(self.block, *args, inside=lambda: self.inside(only=self.block), **kwargs)


def run_twice(
    call: Callable[..., Any],
    *args: Any,
    inside: Callable[[], AbstractContextManager[None]] = nullcontext,
    **kwargs: Any,
) -> Any:
    """Call something that keeps what goes into it alone, and runs again in backward.

    Args:
        call: what is called. It draws no random numbers: backbones are in eval mode, and adapters have no dropout.
        args: what it takes.
        inside: entered while it runs again.
        kwargs: what it takes by name.
    """

    @contextmanager
    def again() -> Iterator[None]:
        token = _RUNS_AGAIN.set(True)
        try:
            with inside():
                yield
        finally:
            _RUNS_AGAIN.reset(token)

    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return checkpoint(call, *args, context_fn=lambda: (nullcontext(), again()), **options, **kwargs)


_RUNS_AGAIN = ContextVar("runs_again", default=False)


class BatchNorm(nn.BatchNorm1d):
    """Whose running statistics move once a step, also where a block runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, N)."""
        if not _RUNS_AGAIN.get():
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.0, self.eps
        )
