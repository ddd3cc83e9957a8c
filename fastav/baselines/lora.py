"""LoRA, by peft: low-rank changes of the backbones' own matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastav.backbones import FrozenBackbone
from fastav.baselines.base import Baseline, trial_input
from fastav.counts import check_counts
from fastav.optional import load_optional

#: Which linear maps of the blocks are changed.
TARGETS = ("all", "attention")
#: What the attention of a block is called in timm's and Hugging Face's families.
ATTENTIONS = {"attn", "attention", "self_attn"}


class Lora(Baseline):
    """LoRA (Hu et al., ICLR 2022) on the linear maps of every block that tokens go through, by the peft library.

    Maps whose weight a block takes without calling them are left out, as peft cannot change what they do: Swin V2's
    and BEiT's common map to queries, keys and values in timm are such. The backbones are copied, so that what was given
    stays as it is. The changes stay beside the matrices, in forward alone too: they are not merged into them.

    Args:
        visual: see :class:`Baseline`.
        audio: likewise.
        targets: ``"all"`` linear maps of a block, or those of its ``"attention"`` alone.
        rank: r of each change.
        alpha: changes are scaled by alpha / r.
        options: see :class:`Baseline`.

    Raises:
        ValueError: other targets, or blocks without any.
        ImportError: peft is missing.
    """

    name = "lora"
    copies = True

    def __init__(
        self,
        visual: nn.Module | FrozenBackbone,
        audio: nn.Module | FrozenBackbone,
        *,
        targets: str = "all",
        rank: int = 8,
        alpha: float = 16.0,
        **options: Any,
    ) -> None:
        if targets not in TARGETS:
            raise ValueError(f"Lora: targets is {targets!r}, wanted one of {TARGETS}")
        check_counts("Lora", rank=rank)
        self.targets, self.rank, self.alpha = targets, rank, alpha
        super().__init__(visual, audio, **options)

    def _build(self, visual: FrozenBackbone, audio: FrozenBackbone) -> None:
        self.changes = nn.ModuleList()  # the backbones' tensors are not in a state, these are
        self.visual = self._changed(visual, self._visual_taps(visual))
        self.audio = self._changed(audio, list(audio.tap_names[-1:]))

    def _changed(self, backbone: FrozenBackbone, taps: list[str]) -> FrozenBackbone:
        peft = load_optional("peft", by="LoRA's changes of backbones", extra="baselines")
        live = self._tapped(backbone, taps)
        maps = linear_maps(live, backbone.tap_names)
        if self.targets == "attention":
            maps = attention_maps(maps, backbone.tap_names)
        if not maps:
            raise ValueError(
                f"Lora: targets is {self.targets!r}, but the blocks of {type(backbone.module).__name__} call no such "
                f"linear map (attention is what is named attn, attention or self_attn in a block); take other targets, "
                f"or another method"
            )
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=maps)
        peft.inject_adapter_in_model(config, live.module)
        for name, module in live.module.named_modules():
            if name.endswith(("lora_A", "lora_B")):
                self.changes.append(module.requires_grad_(True))
        return live


def linear_maps(backbone: FrozenBackbone, blocks: tuple[str, ...]) -> list[str]:
    """Names of the linear maps in some blocks that are called with what depends on the backbone's input."""
    found = []
    hooks = []

    def note(name: str, args: tuple[Tensor, ...]) -> None:
        if args[0].requires_grad:  # tables of position biases are made by linear maps too
            found.append(name)

    for name, module in backbone.module.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(tuple(f"{block}." for block in blocks)):
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: note(name, args)))
    with torch.enable_grad():
        backbone(trial_input(backbone))
    for hook in hooks:
        hook.remove()
    return found


def attention_maps(maps: Sequence[str], blocks: Sequence[str]) -> list[str]:
    """Those of some blocks' linear maps that lie in the blocks' attention."""
    return [
        name
        for name in maps
        for block in blocks
        if name.startswith(f"{block}.") and ATTENTIONS & set(name.removeprefix(f"{block}.").split("."))
    ]
