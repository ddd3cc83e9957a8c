"""Write what was checked and measured: JSON for machines, a Markdown table for people."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.checks import Outcome
from benchmarks.measure import Absence, Figure
from fastav.cost.tables import aligned
from fastav.cost.timing import Spread

#: Most launches of the whole side branch, forward and backward, for any number of taps: kernels, copies and fills.
LAUNCHES = {"Mettle": (12, 24), "Mettle, one tap of each backbone": (12, 24), "MoLT": (24, 48)}


@dataclass
class Report:
    """All of one run on one device.

    Attributes:
        environment: where and with what.
        bandwidth: bytes a second of a copy.
        outcomes: what came of the checks.
        figures: the ops' timings.
        absences: who was not timed, and why.
        branch: the side branch, forward and backward, by whose ops it runs on.
        launches: what adapters' side branches give the device, forward and backward.
        steps: the frozen forward and training steps: seconds, and over the frozen forward of the same round.
        profile: what the profiler says of the slowest call.
    """

    environment: dict[str, str]
    bandwidth: float
    outcomes: list[Outcome] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    branch: dict[str, Spread] = field(default_factory=dict)
    launches: dict[str, tuple[int, int]] = field(default_factory=dict)
    steps: dict[str, tuple[Spread, Spread]] = field(default_factory=dict)
    profile: str = ""

    @property
    def failed(self) -> list[str]:
        """Checks that failed, and fastav's own ops if they could not be timed."""
        own = [f"{a.case}: {a.reason}" for a in self.absences if a.contender == "ours"]
        many = [
            f"{name} launches {found} times, forward and backward, allowed are {LAUNCHES[name]}"
            for name, found in self.launches.items()
            if any(count > most for count, most in zip(found, LAUNCHES[name], strict=True))
        ]
        return [f"{o.name}: {o.detail}" for o in self.outcomes if o.status == "failed"] + own + many

    def as_dict(self) -> dict:
        """All of it as plain values."""
        return asdict(self) | {"figures": [figure.as_dict() for figure in self.figures]}

    def markdown(self) -> str:
        """The report for people."""
        parts = [f"# {self.environment['device']}, {self.environment['date']}"]
        parts.append(aligned(("", "what"), list(self.environment.items()), markdown=True))
        parts.append(f"A copy moves {self.bandwidth / 1e9:.1f} GB/s, read and written, in this run.")
        parts.append("Times are the device's own, but for those marked (host): there it waited for the host.")
        checks = [(o.name, o.status, o.detail.splitlines()[0], f"{o.seconds:.1f}") for o in self.outcomes]
        parts.append("## Checks\n\n" + aligned(("check", "", "detail", "s"), checks, markdown=True))
        for case in dict.fromkeys(figure.case for figure in self.figures):
            parts.append(f"## {case}\n\n" + _figures([f for f in self.figures if f.case == case]))
        if self.absences:
            rows = [(a.case, a.contender, a.reason) for a in self.absences]
            parts.append("## Not timed\n\n" + aligned(("call", "by", "why"), rows, markdown=True))
        if self.branch:
            parts.append("## Side branch, forward and backward\n\n" + _branches(self.branch))
        if self.launches:
            counts = [(name, *found, *LAUNCHES[name]) for name, found in self.launches.items()]
            head = ("side branch", "launches forward", "backward", "at most", "backward")
            parts.append("## What the side branch gives the device\n\n" + aligned(head, counts, markdown=True))
        if self.steps:
            parts.append("## Training step, by turns, the host's time included\n\n" + _steps(self.steps))
        if self.profile:
            parts.append(f"## Profile\n\n```\n{self.profile}\n```")
        return "\n\n".join(parts) + "\n"

    def write(self, paths: tuple[Path, Path]) -> None:
        """Write both forms, as often as there is more to say; see :func:`places`."""
        put(paths, self.as_dict(), self.markdown())


def places(folder: Path, environment: dict[str, str], suffix: str = "") -> tuple[Path, Path]:
    """``<folder>/<device>/<date><suffix>.json`` and ``.md``, where no earlier report or folder is."""
    place = folder / re.sub(r"[^A-Za-z0-9]+", "-", environment["device"]).strip("-").lower()
    place.mkdir(parents=True, exist_ok=True)
    date, taken = environment["date"].split()[0] + suffix, {path.stem for path in place.iterdir()}
    names = [date, *(f"{date}-{i}" for i in range(2, 1000))]
    name = next(name for name in names if name not in taken)
    return place / f"{name}.json", place / f"{name}.md"


def put(paths: tuple[Path, Path], values: dict, text: str) -> None:
    """Write both forms of a report."""
    paths[0].write_text(json.dumps(values, indent=1) + "\n")
    paths[1].write_text(text)


def _figures(figures: Sequence[Figure]) -> str:
    """Times of one call, by whom, with how many times as long as fastav each takes."""
    ours = {f.direction: f.spread.median for f in figures if f.contender == "ours"}
    rows = [
        (f.contender, f.direction, marked(f.spread), duration(f.spread.iqr), f"{f.gigabytes:.1f}",
         f"{f.share:.2f}", f"{f.spread.median / ours[f.direction]:.2f} x" if f.direction in ours else "-")
        for f in figures
    ]  # fmt: skip
    return aligned(("by", "direction", "median", "IQR", "GB/s", "of copy", "of ours"), rows, markdown=True)


def _branches(spreads: Mapping[str, Spread]) -> str:
    ours = spreads.get("ours")
    rows = [
        (name, marked(s), duration(s.iqr), f"{s.median / ours.median:.2f} x" if ours else "-")
        for name, s in spreads.items()
    ]
    return aligned(("", "median", "IQR", "of ours"), rows, markdown=True)


def _steps(steps: Mapping[str, tuple[Spread, Spread]]) -> str:
    rows = [
        (name, duration(took.median), duration(took.iqr), f"{ratio.median:.3f} x", f"{ratio.iqr:.3f}")
        for name, (took, ratio) in steps.items()
    ]
    return aligned(("", "median", "IQR", "of the frozen forward", "IQR"), rows, markdown=True)


def marked(spread: Spread) -> str:
    """The median, with a mark if most rounds hold the host's time too."""
    return duration(spread.median) + (" (host)" if 2 * spread.late > spread.rounds else "")


def duration(seconds: float) -> str:
    """In words of at most milliseconds."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
