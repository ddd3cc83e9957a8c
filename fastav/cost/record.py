"""A profile as files, which are there as soon as a method has been measured."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fastav.cost.measure import Cost
from fastav.cost.profile import Absence
from fastav.cost.report import TITLES, cost_table, draw_costs, notes, parts_table


@dataclass
class Record:
    """Tables, a picture for each batch, and all figures as JSON: ``costs.md``, ``<batch>.png``, ``costs.json``.

    Attributes:
        folder: where they are.
        title: what is measured.
        where: on what.
        batches: what was found so far.
    """

    folder: Path
    title: str
    where: str
    batches: list[Batch] = field(default_factory=list)

    def batch(self, name: str, words: str) -> Batch:
        """Begin one more batch.

        Args:
            name: of its picture's file.
            words: how many clips it has.
        """
        self.batches.append(Batch(self, name, words))
        return self.batches[-1]

    @property
    def failed(self) -> bool:
        """Whether a method was not what it claims to be, or broke."""
        return any(absence.failed for batch in self.batches for absence in batch.absences)

    @property
    def names(self) -> list[str]:
        """Of the files."""
        return ["costs.md", "costs.json", *(f"{batch.name}.png" for batch in self.batches if batch.costs)]

    def text(self, *, markdown: bool) -> str:
        """All of it in words."""
        parts = []
        for batch in self.batches:
            parts.append(f"{'## ' if markdown else ''}{batch.words[0].upper()}{batch.words[1:]}")
            if batch.costs:
                parts += [make(batch.costs, markdown=markdown) for make in (cost_table, parts_table)]
                parts += notes(batch.costs)
            parts += [f"{TITLES[one.method]}: not measured: {one.reason}" for one in batch.absences]
        return "\n\n".join(parts) + "\n"

    def write(self) -> None:
        """Write everything that is known."""
        said = f"# {self.title}\n\n{self.text(markdown=True)}\n{self.where}\n"
        (self.folder / "costs.md").write_text(said)
        values = {
            "title": self.title,
            "where": self.where,
            **{batch.name: [cost.as_dict() for cost in batch.costs] for batch in self.batches},
            "absences": [[batch.name, one.method, one.reason] for batch in self.batches for one in batch.absences],
        }
        (self.folder / "costs.json").write_text(json.dumps(values, indent=1) + "\n")
        for batch in self.batches:
            if batch.costs:
                absent = {TITLES[one.method]: one.reason for one in batch.absences}
                path, title = self.folder / f"{batch.name}.png", f"{self.title}, {batch.words}"
                draw_costs(batch.costs, path, title, where=self.where, absent=absent)


@dataclass
class Batch:
    """What was found of one size of batch.

    Attributes:
        record: whose it is.
        name: of its picture's file.
        words: how many clips it has.
        costs: of methods that were measured.
        absences: the others.
    """

    record: Record
    name: str
    words: str
    costs: list[Cost] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)

    def add(self, found: Cost | Absence) -> None:
        """Write it down, and say so on standard error."""
        if isinstance(found, Absence):
            self.absences.append(found)
            said = f"not measured: {found.reason}"
        else:
            self.costs.append(found)
            said = f"measured, {self.words}"
        print(f"{TITLES[found.method]}: {said}", file=sys.stderr, flush=True)
        self.record.write()
