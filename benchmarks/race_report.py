"""Write down races: JSON for machines, and for people one table a call, sorted by time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.device_report import duration, put
from benchmarks.measure import Absence
from benchmarks.memory import NOISE, PER_TOKEN, Peak
from benchmarks.race import Lap
from benchmarks.workloads import DIRECTIONS
from fastav.cost.tables import aligned


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second that the machine itself copies (read and written) and reads, with so many threads."""

    threads: int
    copy: float
    read: float


@dataclass
class RaceReport:
    """All of one run on one CPU.

    Attributes:
        environment: where and with what.
        bandwidths: the machine's own, by number of threads.
        laps: what came of the races.
        peaks: peak memory of single calls.
        growth: bytes a token that each contender takes more when there are more tokens.
        limit: what ours may grow by.
        absences: who did not run, and why.
    """

    environment: dict[str, str]
    bandwidths: list[Bandwidth] = field(default_factory=list)
    laps: list[Lap] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)
    growth: dict[str, float] = field(default_factory=dict)
    limit: float = 0.0
    absences: list[Absence] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Ours where it is wrong, did not run, or grows."""
        own = [f"{a.case}: {a.contender}: {a.reason}" for a in self.absences if a.contender.startswith("ours")]
        own += [f"{p.case}: {p.by}: no peak: {p.reason}" for p in self.peaks if p.by == "ours" and p.bytes is None]
        if self.growth.get("ours", 0.0) > self.limit:
            own.append(f"ours takes {self.growth['ours']:.2f} bytes more a token, allowed {self.limit:.2f}")
        return own

    def as_dict(self) -> dict:
        """All of it as plain values."""
        return asdict(self) | {"laps": [lap.as_dict() for lap in self.laps], "failed": self.failed}

    def write(self, paths: tuple[Path, Path]) -> None:
        """Write what there is so far, in both forms."""
        put(paths, self.as_dict(), self.markdown())

    def markdown(self) -> str:
        """The report for people."""
        parts = [f"# {self.environment['device']}, {self.environment['date']}"]
        if self.failed:
            parts.append("**FAILED**\n\n" + "\n".join(f"- {line}" for line in self.failed))
        parts.append("## At a glance\n\n" + self._glance())
        parts.append("## Machine\n\n" + aligned(("", "what"), list(self.environment.items()), markdown=True))
        rows = [(b.threads, f"{b.copy / 1e9:.1f}", f"{b.read / 1e9:.1f}") for b in self.bandwidths]
        parts.append(aligned(("threads", "copy GB/s, read and written", "read GB/s"), rows, markdown=True))
        for race in dict.fromkeys(lap.race for lap in self.laps):
            parts.append(f"## {race}\n\n" + self._table([lap for lap in self.laps if lap.race == race]))
        if self.peaks:
            parts.append("## Peak memory of one call, forward + backward\n\n" + self._memory())
        if self.absences:
            lines = [(a.case, a.contender, a.reason) for a in dict.fromkeys(self.absences)]
            parts.append("## Not timed\n\n" + aligned(("call", "by", "why"), lines, markdown=True))
        return "\n\n".join(parts) + "\n"

    def _glance(self) -> str:
        """Of each race, ours beside the fastest peer; so too a guest of ours from another race."""
        rows = []
        whole = [lap for lap in self.laps if lap.direction == DIRECTIONS[-1]]
        for race, threads in dict.fromkeys((lap.race, lap.threads) for lap in whole):
            laps = [lap for lap in whole if (lap.race, lap.threads) == (race, threads)]
            peers = [lap for lap in laps if not lap.by.startswith(("ours", "("))]
            best = min(peers, key=lambda lap: lap.spread.median, default=None)
            for ours in laps:
                if best and (ours.by == "ours" or ours.by.startswith("(")):
                    rows.append((race, threads, ours.by, duration(ours.spread.median), best.by,
                                 duration(best.spread.median), *_times(best, ours)))  # fmt: skip
        head = ("forward + backward", "threads", "", "median", "fastest PyTorch", "median", "times ours", "quartiles")
        return aligned(head, rows, markdown=True)

    def _table(self, laps: Sequence[Lap]) -> str:
        rows = []
        order = sorted(laps, key=lambda lap: (DIRECTIONS.index(lap.direction), lap.threads, lap.spread.median))
        bandwidths = {b.threads: b for b in self.bandwidths}
        ours = {(lap.direction, lap.threads): lap for lap in laps if lap.by == "ours"}
        for lap in order:
            machine, time, unit = bandwidths[lap.threads], lap.spread, ours.get((lap.direction, lap.threads))
            own = _times(lap, unit)[0] if unit else "-"
            read, rate = ((count or 0) / time.median / 1e9 for count in (lap.read, lap.operations))
            share = f"{read:.1f}", f"{read * 1e9 / machine.read:.2f}", f"{read * 1e9 / machine.copy:.2f}"
            quartiles = f"{duration(time.low)} to {duration(time.high)}"
            rows.append((lap.direction, lap.threads, lap.by, duration(time.median), quartiles, own,
                         *(share if read else "---"), f"{rate:.0f}" if rate else "-",
                         "-" if lap.error is None else f"{lap.error:.3f}"))  # fmt: skip
        head = ("direction", "threads", "by", "median", "quartiles", "times ours", "taps GB/s", "of read", "of copy",
                "GFLOP/s", "error")  # fmt: skip
        return aligned(head, rows, markdown=True)

    def _memory(self) -> str:
        ours = {p.case: p.bytes for p in self.peaks if p.by == "ours"}
        rows = []
        for p in sorted(self.peaks, key=lambda p: (list(ours).index(p.case) if p.case in ours else 0, p.bytes or 0)):
            own = ours.get(p.case)
            found = (p.reason, "-") if p.bytes is None else (f"{p.bytes / 1e6:.1f}", "-")
            if p.bytes is not None and own:
                found = found[0], f"{p.bytes / own:.2f} x"
            rows.append((p.case, p.by, *found))
        text = aligned(("call", "by", "MB over its inputs", "times ours"), rows, markdown=True)
        if self.growth:
            rates = ", ".join(f"{by} {rate:.1f}" for by, rate in self.growth.items())
            text += (
                f"\n\nBytes more for each token more: {rates}. Ours may take {self.limit:.2f}: {PER_TOKEN} for one "
                f"number in float32, the least that could be kept for each token, and {NOISE >> 10} KiB in all, by "
                f"which two measurements of the same may differ."
            )
        return text


def _times(lap: Lap, unit: Lap) -> tuple[str, str]:
    """How many times as long as another of the same round: the median, and the quartiles."""
    ratio = lap.ratio(unit)
    return f"{ratio.median:.2f} x", f"{ratio.low:.2f} to {ratio.high:.2f}"
