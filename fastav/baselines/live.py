"""A backbone with frozen weights that gradients run through: what adapters inside of it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastav.backbones import FrozenBackbone
from fastav.baselines.checkpointing import Inside, checkpointed, nothing


class LiveBackbone(FrozenBackbone):
    """A :class:`FrozenBackbone` whose taps have gradients.

    Whatever stands in its blocks (see :func:`fastav.baselines.inserted`) is trained by back-propagation through all
    blocks behind; the backbone's own weights stay frozen and it stays in eval mode, as ours do. The peers' own code
    trains with drop path and moving batch statistics instead.

    Attributes:
        run_again: names of the blocks that keep what goes into them alone, and run again in backward.
    """

    run_again: Sequence[str] = ()

    def forward(
        self, x: Tensor, ready: Callable[[list[Tensor]], None] | None = None, *, inside: Inside = nothing
    ) -> list[Tensor]:
        """Read the taps of a batch.

        Args:
            x: see :meth:`FrozenBackbone.forward`, as for ``ready``.
            ready: called with each portion of taps.
            inside: entered while the blocks run, and with each that runs again.
        """
        again = self.run_again if self._grad_mode() else ()
        with inside(), checkpointed(self.module, again, inside):
            return super().forward(x, ready)

    @property
    def chunk(self) -> None:
        """None: gradients run through all items at once, and what stands in the blocks may mix them."""
        return None

    @chunk.setter
    def chunk(self, items: int | None) -> None:
        if items is not None:
            raise ValueError(
                f"chunk is {items!r}, but gradients run through this backbone, and through all items at once; "
                f"give the backbone without chunk, and smaller batches"
            )

    def _grad_mode(self) -> bool:
        return torch.is_grad_enabled()
