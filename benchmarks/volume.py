"""How many bytes a call must move: every argument read once, every result written once."""

from typing import Any

from torch import Tensor

from benchmarks.cases import Case
from benchmarks.layouts import empty


def size(tensors: Any) -> int:
    """Bytes of a tensor, of a list of tensors, or of None."""
    if tensors is None:
        return 0
    return sum(t.numel() * t.element_size() for t in ([tensors] if isinstance(tensors, Tensor) else tensors))


def needed(case: Case, direction: str, outputs: int, kept: int) -> int:
    """Bytes a call must move.

    Args:
        case: the call.
        direction: ``"forward"`` or ``"backward"``.
        outputs: bytes of its results.
        kept: bytes of what its forward pass keeps for its backward pass besides.
    """
    lists = {name: size(tensors) for name, tensors in case.tensors(empty).items()}
    if direction == "forward":
        return sum(lists.values()) + outputs + kept
    gradients = sum(lists[name] for name in case.wanted)
    # Of its results' gradients it reads as much as they have elements; its results only where something is kept.
    return sum(lists.values()) - lists.get("residuals", 0) + outputs + (outputs + kept if kept else 0) + gradients
