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


def read(case: Case, direction: str) -> int:
    """Bytes of the op's first list, the taps or features, read once in each direction."""
    return case.first_bytes * (1 if direction == "forward" else 2)


def operations(case: Case, direction: str) -> int | None:
    """Floating-point operations of the products that ``distill`` takes, and of an ``attend`` that projects every token.

    The same count for every contender, whatever it does: scores and sums forward; backward the scores again, the
    upstream gradient with every token, and two sums. Statistics and softmax are not counted. None for other ops.
    """
    if case.op not in ("distill", "attend"):
        return None
    taps, queries = case.lists["taps"], case.lists["queries"]
    assert taps is not None
    assert queries is not None
    total = 0
    for (b, n, d), (*_, rows, inner) in zip(taps.shapes, queries.shapes, strict=True):
        pooling = 2 * b * n * rows * inner  # of one product
        projecting = 2 * b * n * d * inner if case.op == "attend" else 0
        # attend: both projections, scores and sums; backward two products for each of them
        forward = 2 * (pooling + projecting)
        both = 6 * pooling if case.op == "distill" else forward + 4 * pooling + 2 * projecting
        total += forward if direction == "forward" else both
    return total
