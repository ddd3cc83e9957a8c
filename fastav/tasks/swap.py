"""Ask what concerns one sense with another clip for the other sense, so that nothing is learned by heart from it."""

import torch
from torch import Tensor

from fastav.data.question_types import QUESTION_TYPES


def swap_unasked(question_types: Tensor, clips: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Choose with whose sight and whose sound each question of a training batch is asked.

    What is seen has the same answer whatever is heard, and what is heard whatever is seen. A share of a batch's clips
    swap, two by two, drawn anew each time: questions about sight alone are asked with the other clip's sound, and
    questions about sound alone with the other clip's sight. Those about both keep both. A batch of n clips has no more
    than (1 + ``share``) n combinations on average.

    Args:
        question_types: (B,) int64, indices into ``fastav.data.QUESTION_TYPES``.
        clips: (B,) int64, the clip that each question is about.
        share: how likely two clips are to swap, 0 ... 1. Of an odd number, one never does.

    Returns:
        The clips to look at and the clips to listen to, (B,) int64 each.

    Raises:
        ValueError: shapes that do not match, types that there are not, or a share that is none.
    """
    if question_types.shape != clips.shape or clips.ndim != 1:
        raise ValueError(
            f"swap_unasked: question_types are {tuple(question_types.shape)} and clips {tuple(clips.shape)}, wanted "
            f"(B,) each"
        )
    if not 0 <= share <= 1:
        raise ValueError(f"swap_unasked: share is {share}, wanted 0 ... 1")
    if question_types.numel() and not 0 <= question_types.min() <= question_types.max() < len(QUESTION_TYPES):
        raise ValueError(
            f"swap_unasked: question_types hold {int(question_types.min())} ... {int(question_types.max())}, wanted 0 "
            f"... {len(QUESTION_TYPES) - 1}"
        )
    different, of = clips.unique(return_inverse=True)
    order = torch.randperm(len(different), device=clips.device)
    pairs = order[: len(order) // 2 * 2].view(-1, 2)
    pairs = pairs[torch.rand(len(pairs), device=clips.device) < share]
    partner = torch.arange(len(different), device=clips.device)
    partner[pairs] = pairs.flip(1)
    others = different[partner][of]
    return (
        torch.where(_about("Audio", question_types), others, clips),
        torch.where(_about("Visual", question_types), others, clips),
    )


def _about(sense: str, question_types: Tensor) -> Tensor:
    of_types = [group == sense for group, _ in QUESTION_TYPES]
    return torch.tensor(of_types, device=question_types.device)[question_types]
