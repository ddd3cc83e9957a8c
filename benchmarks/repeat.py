"""Two runs of ``pytest benchmarks`` beside each other: ``python -m benchmarks.repeat a.json b.json``.

What is kept for backward must be the same to the byte. A step's time over the frozen forward's may differ by what the
two runs say of their own spread.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import costs_of
from fastav.cost.report import TITLES, megabytes
from fastav.cost.tables import aligned


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, int, int]:
    """Compare the methods that are in both runs.

    Args:
        first: the JSON of a run.
        second: of another one, on the same machine.

    Returns:
        The table as Markdown; how many rows keep the same bytes and agree in time, and how many were measured with as
        many clips. Times agree if the medians are no further apart than the two IQRs together: normally distributed
        ones of one and the same call would be further apart in 1 of 20 such pairs of five rounds, 1 of 8 of three.

    Raises:
        ValueError: there is no method that both runs measured at one size.
    """
    found = {(one["size"], one["batch"], cost.method): cost for one, cost in costs_of(first)}
    rows, agreeing, compared = [], 0, 0
    for one, b in costs_of(second):
        a = found.get((one["size"], one["batch"], b.method))
        if a is None:
            continue
        if a.clips != b.clips:
            rows.append((TITLES[a.method], f"{a.clips}, then {b.clips}", *"-----"))
            continue
        compared += 1
        same = a.saved == b.saved
        apart = abs(a.over_frozen.median - b.over_frozen.median)
        within = apart <= a.over_frozen.iqr + b.over_frozen.iqr
        agreeing += same and within
        rows.append(
            (
                TITLES[a.method],
                a.clips,
                f"{megabytes(a.saved_bytes)}" if same else f"{a.saved_bytes} and {b.saved_bytes} B",
                f"{a.over_frozen.median:.2f}",
                f"{b.over_frozen.median:.2f}",
                f"{a.over_frozen.iqr + b.over_frozen.iqr:.2f}",
                "yes" if within else "no",
            )
        )
    if not rows:
        raise ValueError("there is no method that both runs measured at one size; run both with the same flags")
    head = ("method", "clips", "saved MB", "of frozen", "again", "IQRs", "agree")
    return aligned(head, rows, markdown=True), agreeing, compared


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison of two JSON files."""
    parser = argparse.ArgumentParser("python -m benchmarks.repeat", description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, nargs=2, help="what pytest benchmarks wrote")
    options = parser.parse_args(arguments)
    table, agreeing, count = compare(*(json.loads(path.read_text()) for path in options.json))
    print(f"{table}\n\n{agreeing} of {count} agree.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
