"""What adapters and the peers' methods hand to a task's head."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AdapterOutput(NamedTuple):
    """What an adapter gives for a batch of B clips of T segments.

    Attributes:
        visual: (B, T, K, W), each segment's visual tokens, all layers fused.
        audio: (B, T, K, W), each segment's audio tokens, all layers fused.
        aux_loss: scalar, to be added to the task's loss; zero where the method has no term of its own.
        features: for dense tasks the visual feature maps, in network order, finest first: (B, T, h, w, D) each. An
            adapter's are those that it injects learned tokens into, a baseline's those of the ends of the stages.
        router: MoLT's (B, T, L, 2): how much each layer takes of its uni-modal and of its cross-modal tokens; visual
            layers first. None for other methods.
        fusion: MoLT's (B, T, K, L_visual) and (B, T, K, L_audio): how much each layer gives to each token. None for
            other methods.
    """

    visual: Tensor
    audio: Tensor
    aux_loss: Tensor
    features: tuple[Tensor, ...] = ()
    router: Tensor | None = None
    fusion: tuple[Tensor, Tensor] | None = None
