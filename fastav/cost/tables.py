"""Aligned tables."""

import re
from collections.abc import Sequence


def aligned(head: Sequence[str], rows: Sequence[Sequence[object]], *, markdown: bool = False) -> str:
    """Rows under a head, columns aligned: numbers to the right, words to the left.

    Args:
        head: the columns' names.
        rows: what stands in them; floats come with three digits.
        markdown: as a Markdown table.
    """
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 3) for i, name in enumerate(head)]
    right = [all(_is_number(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return f"| {' | '.join(parts)} |" if markdown else "  ".join(parts).rstrip()

    rules = [("-" * (w - 1) + ":" if r and markdown else "-" * w) for w, r in zip(widths, right, strict=True)]
    return "\n".join([line(list(head)), line(rules), *map(line, cells)])


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?[\d.,]+(e[+-]?\d+)?( x| %)?|-|", cell) is not None
