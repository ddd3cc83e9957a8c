"""Two backbones that wait for each other in the middle of their blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastav.optional import load_optional

Result = TypeVar("Result")


def in_step(
    exchange: Callable[[Sequence[Any]], Sequence[Any]], *runs: Callable[[Callable[[Any], Any]], Result]
) -> list[Result]:
    """Run functions in turns, in one thread, so that they can exchange what they have at hand.

    Each is given a function ``meet``. Whoever calls ``meet(x)`` halts, however deep inside of a backbone it is, until
    all others have called theirs; then ``exchange`` makes of what all came with what each goes on with, in the order of
    the functions, and ``meet`` returns it. Autograd and hooks on saved tensors see one run after the other.

    Args:
        exchange: makes as many things as it is given.
        runs: the functions, which meet equally often.

    Returns:
        What they return.

    Raises:
        ValueError: some have ended while others still wait to meet.
        ImportError: greenlet is missing.
    """
    greenlet = load_optional("greenlet", by="adapters between two backbones", extra="baselines")
    home = greenlet.getcurrent()
    branches = [greenlet.greenlet(run) for run in runs]
    try:
        brought = [branch.switch(home.switch) for branch in branches]
        while not any(branch.dead for branch in branches):
            brought = [branch.switch(x) for branch, x in zip(branches, exchange(brought), strict=True)]
        waiting = [number for number, branch in enumerate(branches) if not branch.dead]
        if waiting:
            raise ValueError(
                f"runs {waiting} of {len(runs)} wait to meet others that have ended: all must meet equally often"
            )
        return brought
    finally:
        for branch in branches:  # who still waits leaves now, and takes its hooks away
            if not branch.dead:
                branch.throw()
