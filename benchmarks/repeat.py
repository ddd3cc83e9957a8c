"""Two runs of ``pytest benchmarks`` beside each other: ``python -m benchmarks.repeat a.json b.json``.

What is kept for backward must be the same to the byte, or the exit status is 1. Peaks are shown: on a CPU they are the
same too. A step's time over the frozen forward's may differ by what the two runs say of their own spread, and now and
then by more.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import costs_of
from fastav.cost.report import TITLES, megabytes
from fastav.cost.tables import aligned


class Comparison(NamedTuple):
    """What two runs say of the same methods.

    Attributes:
        table: as Markdown.
        compared: how many rows were measured with as many clips in both.
        same: how many of these keep the same bytes.
        agreeing: how many of these agree in time too.
    """

    table: str
    compared: int
    same: int
    agreeing: int


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compare the methods that are in both runs.

    Args:
        first: the JSON of a run.
        second: of another one, on the same machine.

    Returns:
        Times agree if the medians are no further apart than the two IQRs together: normally distributed ones of one and
        the same call would be further apart in 1 of 20 such pairs of five rounds, 1 of 8 of three.

    Raises:
        ValueError: there is no method that both runs measured at one size.
    """
    found = {(one["size"], one["batch"], cost.method): cost for one, cost in costs_of(first)}
    rows, agreeing, compared, alike = [], 0, 0, 0
    for one, b in costs_of(second):
        a = found.get((one["size"], one["batch"], b.method))
        if a is None:
            continue
        if a.clips != b.clips:
            rows.append((TITLES[a.method], f"{a.clips}, then {b.clips}", *"------"))
            continue
        compared += 1
        same = a.saved == b.saved
        apart = abs(a.over_frozen.median - b.over_frozen.median)
        within = apart <= a.over_frozen.iqr + b.over_frozen.iqr
        alike += same
        agreeing += same and within
        rows.append(
            (
                TITLES[a.method],
                a.clips,
                f"{megabytes(a.saved_bytes)}" if same else f"{a.saved_bytes} and {b.saved_bytes} B",
                " and ".join(dict.fromkeys((megabytes(a.peak.bytes), megabytes(b.peak.bytes)))),
                f"{a.over_frozen.median:.2f}",
                f"{b.over_frozen.median:.2f}",
                f"{a.over_frozen.iqr + b.over_frozen.iqr:.2f}",
                "yes" if within else "no",
            )
        )
    if not rows:
        raise ValueError("there is no method that both runs measured at one size; run both with the same flags")
    head = ("method", "clips", "saved MB", "peak MB", "of frozen", "again", "IQRs", "agree")
    return Comparison(aligned(head, rows, markdown=True), compared, alike, agreeing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison of two JSON files; 1 if they do not keep the same bytes."""
    parser = argparse.ArgumentParser("python -m benchmarks.repeat", description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, nargs=2, help="what pytest benchmarks wrote")
    options = parser.parse_args(arguments)
    found = compare(*(json.loads(path.read_text()) for path in options.json))
    print(f"{found.table}\n\n{found.same} of {found.compared} keep the same bytes, {found.agreeing} agree in time too.")
    return int(found.same < found.compared)


if __name__ == "__main__":
    sys.exit(main())
