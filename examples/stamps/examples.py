"""What a task asks about the clips of one split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from examples.stamps.taps import Split


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples of one split: one a clip, or several, such as questions.

    Attributes:
        split: the clips, as taps.
        targets: by name, as :class:`fastav.tasks.Task` wants them in a batch: tensors or lists, one entry an example.
        clip: (n,) int64, the clip that each example is about, ascending.
    """

    split: Split
    targets: Mapping[str, Any]
    clip: Tensor

    def __len__(self) -> int:
        return len(self.clip)

    @property
    def several_a_clip(self) -> bool:
        """Whether one clip may have more than one example."""
        return len(self.clip) != len(self.split)

    @cached_property
    def of_clips(self) -> tuple[Tensor, ...]:
        """The numbers of each clip's examples."""
        return torch.arange(len(self)).split(torch.bincount(self.clip, minlength=len(self.split)).tolist())

    def batch(self, index: Tensor) -> dict[str, Any]:
        """The targets of the examples at ``index`` (B,), where the split's backbones are."""
        device = self.split.device
        return {
            name: values[index].to(device) if isinstance(values, Tensor) else [values[i] for i in index.tolist()]
            for name, values in self.targets.items()
        }
