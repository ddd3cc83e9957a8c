"""A check that configurations and methods share."""

from __future__ import annotations

from typing import Any


def check_counts(by: str, **counts: Any) -> None:
    """Raise ValueError for anything but integers of at least 1.

    Args:
        by: who asks.
        counts: what was given, by the names of its arguments.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{by}: {name} is {value!r}, wanted an integer of at least 1")
