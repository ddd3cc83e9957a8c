"""Race fastav's native CPU kernels against PyTorch on the CPU at hand: ``python -m benchmarks.run_cpu``.

Every contender first proves right, then all run in turn, round after round, at each number of threads: distill on the
AVE step and on the demo's step, attention that projects every token, the other four ops, and the side branch as a
whole. Then the peak memory of single calls. The report goes to ``benchmarks/results/<cpu>/<date>.json`` and ``.md``.
The exit status is 1 if ours is wrong, does not run or takes memory for each token, and 2 without the native kernels.
``--smoke`` does all of it at small sizes in seconds, with whatever backend serves, to see that it runs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

import fastav
from benchmarks.cpu import CPU, growing, heats
from benchmarks.device_report import places
from benchmarks.environment import environment
from benchmarks.measure import OBSTACLES, Absence
from benchmarks.memory import Peak, growth, limit, measured
from benchmarks.race import Entrant, Lap, compete, contenders, race, using_threads
from benchmarks.race_report import Bandwidth, RaceReport
from benchmarks.run_gpu import RESULTS
from benchmarks.side import Pair, ave_pair, branches, small_pair, stamps_pair
from benchmarks.timing import copy_bandwidth, read_bandwidth
from benchmarks.workloads import DIRECTIONS

#: Whose memory is measured beside ours when tokens are doubled: the plain form, and the one that keeps least.
BESIDE = ("plain", "folded compile")

#: Calls whose peak memory is measured, by the beginnings of their names.
WEIGHED = ("distill", "attend")

#: Whose memory the smoke test measures, of the first call alone.
FEW = ("ours", "plain")


def say(line: str) -> None:
    """Tell how far the run is."""
    print(line, file=sys.stderr, flush=True)


def branch_laps(name: str, pair: Pair, rounds: int) -> tuple[list[Lap], list[Absence]]:
    """Race the side branch as a whole, once each has proved right."""
    line, absent = [], []
    for branch in branches(pair):
        try:
            branch.check()
            line.append(Entrant(branch.name, [branch.run]))
        except OBSTACLES as error:
            absent.append(Absence.of(name, branch.name, error))
    say(f"{name}, {torch.get_num_threads()} threads: {len(line)} contenders")
    return race(name, DIRECTIONS[-1], line, rounds), absent


def pairs(smoke: bool) -> dict[str, Callable[[], Pair]]:
    """How to make the backbones of each side branch."""
    if smoke:
        return {"side branch small": partial(small_pair, CPU)}
    return {"side branch AVE fp32": partial(ave_pair, CPU, 1, torch.float32), "side branch stamps fp16": stamps_pair}


def peaks(chosen: Sequence[str], threads: int, smoke: bool) -> Iterator[Peak]:
    """Peak memory of every contender on some calls, and of a few when tokens are doubled."""
    for heat in heats(smoke=smoke):
        workload = heat.workload
        if workload.case.name.startswith(WEIGHED) and _asked(workload.case.name, chosen):
            for by in contenders(workload):
                # It takes the same memory on every vector path.
                if not by.startswith("ours,") and (by in FEW or not smoke):
                    say(f"memory: {workload.case.name}: {by}")
                    yield measured(workload.case.name, by, threads=threads, smoke=smoke)
        if smoke:
            break
    for case in growing(smoke=smoke):
        for by in ("ours", *BESIDE):
            if _asked(case.name, chosen) and (by == "ours" or not smoke):
                say(f"memory: {case.name}: {by}")
                yield measured(case.name, by, threads=threads, smoke=smoke)


def _asked(name: str, chosen: Sequence[str]) -> bool:
    return not chosen or name.startswith(tuple(chosen))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and write the report."""
    parser = argparse.ArgumentParser("python -m benchmarks.run_cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes, in seconds, with whatever backend serves")
    parser.add_argument("--only", nargs="+", default=[], help="only calls whose names begin so")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where reports go")
    parser.add_argument("--rounds", type=int, default=25, help="how often each call is timed at most")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    options = parser.parse_args(arguments)
    native = fastav.backends()["native"]
    if not native.usable and not options.smoke:
        print(f"run_cpu: there is nothing to race: {native.reason}", file=sys.stderr)
        return 2
    rounds = 5 if options.smoke else options.rounds
    if options.smoke:
        torch.compiler.set_stance("force_eager")  # no code is generated

    report = RaceReport(environment(CPU) | {"threads": ", ".join(map(str, options.threads))})
    for threads in options.threads:
        with using_threads(threads):
            report.bandwidths.append(Bandwidth(threads, copy_bandwidth(CPU), read_bandwidth(CPU)))
    written = places(options.results, report.environment)
    for heat in heats(smoke=options.smoke):
        if not _asked(heat.workload.case.name, options.only):
            continue
        for threads in options.threads:
            with using_threads(threads):
                laps, absences = compete(heat.workload, rounds, beside=heat.beside, tell=say)
            report.laps += laps
            report.absences += absences
        heat.workload.release()
        report.write(written)  # a run that is cut short leaves what it has
    for name, make in pairs(options.smoke).items():
        if not _asked(name, options.only):
            continue
        pair = make()
        for threads in options.threads:
            with using_threads(threads):
                laps, absences = branch_laps(name, pair, rounds)
            report.laps += laps
            report.absences += absences
    if not options.no_memory:
        report.peaks = list(peaks(options.only, max(options.threads), options.smoke))
        report.growth, report.limit = growth(report.peaks, options.smoke), limit(options.smoke)
    report.write(written)
    print(report.markdown())
    print(f"written to {os.path.relpath(written[0])} and {os.path.relpath(written[1])}")
    print("\n".join(f"FAILED {line}" for line in report.failed))
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
