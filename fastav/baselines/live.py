"""A backbone with frozen weights that gradients run through: what adapters inside of it cost."""

import torch

from fastav.backbones import FrozenBackbone


class LiveBackbone(FrozenBackbone):
    """A :class:`FrozenBackbone` whose taps have gradients.

    Whatever stands in its blocks (see :func:`fastav.baselines.inserted`) is trained by back-propagation through all
    blocks behind; the backbone's own weights stay frozen and it stays in eval mode, as ours do. The peers' own code
    trains with drop path and moving batch statistics instead.
    """

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
