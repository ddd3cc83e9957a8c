"""A backbone with frozen weights that gradients run through: what adapters inside of it cost."""

import torch

from fastav.backbones import FrozenBackbone


class LiveBackbone(FrozenBackbone):
    """A :class:`FrozenBackbone` whose taps have gradients.

    Whatever stands in its blocks (see :func:`fastav.baselines.inserted`) is trained by back-propagation through all
    blocks behind; the backbone's own weights stay frozen and it stays in eval mode, as ours do. The peers' own code
    trains with drop path and moving batch statistics instead.
    """

    def _grad_mode(self) -> bool:
        return torch.is_grad_enabled()
