"""The ahead-of-time gate: every kernel as it is really launched, compiled for every chip, with the compiler's report.

``python -m benchmarks.aot [--chips sm_80 ...] [--kernels distill ...]`` needs no GPU. The launchers run on empty CPU
tensors, their launches are noted instead of run, and each distinct one (kernel, argument types, constants, warps,
stages) is compiled once a chip. The exit status is 1 if any spills, has a stack frame, or wants more shared memory or
registers than the chip has. At the end the bytes that the launches move are counted, see :mod:`benchmarks.traffic`.
"""

import argparse
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection

from benchmarks import traffic
from benchmarks.cases import Case, compiled_cases
from benchmarks.recording import Recorded, record
from benchmarks.resources import CHIPS, Usage, key, usage
from fastav.cost.tables import aligned
from fastav.kernels.launch import INTERPRETED, Launch


@dataclass(frozen=True)
class Job:
    """One compilation.

    Attributes:
        launch: what is compiled.
        chip: what for.
        cases: names of the cases that launch it.
    """

    launch: Launch
    chip: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What became of a job: its usage, or why it does not compile."""

    job: Job
    usage: Usage | None
    error: str = ""

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, nothing if all is well."""
        if self.usage is None:
            return [f"does not compile: {self.error}"]
        return list(self.usage.faults(self.job.chip, self.job.launch.blocks.warps))


def selected(cases: Iterable[Case], kernels: Sequence[str]) -> list[Case]:
    """Cases that can launch kernels whose names begin with any of ``kernels``: all, if no op's name fits."""
    cases = list(cases)
    return [c for c in cases if any(k.startswith(c.op) or c.op.startswith(k) for k in kernels)] or cases


def jobs(recorded: Iterable[Recorded], chip: str, kernels: Sequence[str] = ()) -> list[Job]:
    """The distinct launches among the recorded ones, of kernels whose names begin with any of ``kernels``."""
    found: dict[str, tuple[Launch, dict[str, None]]] = {}
    for r in recorded:
        if not kernels or r.launch.name.startswith(tuple(kernels)):
            found.setdefault(key(r.launch), (r.launch, {}))[1][r.case.name] = None
    return [Job(launch, chip, tuple(names)) for launch, names in found.values()]


def run(todo: Sequence[Job], workers: int) -> list[Result]:
    """Compile so many at a time, each in a process of its own: a compiler that crashes is one finding and no end."""
    results: dict[int, Result] = {}
    waiting, running = list(enumerate(todo)), dict[int, tuple[int, _Child]]()
    while waiting or running:
        while waiting and len(running) < workers:
            i, job = waiting.pop(0)
            child = _Child(job)
            running[child.process.sentinel] = i, child
        ended = set(multiprocessing.connection.wait(list(running)))
        for i, child in [running.pop(sentinel) for sentinel in list(running) if sentinel in ended]:
            results[i] = child.result()
    return [results[i] for i in range(len(todo))]


class _Child:
    """A process that compiles one job. It is forked, as jitted functions and tensors cannot be sent to another."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by result()
        self.pipe, other = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.get_context("fork").Process(target=self._compile, args=(other,))
        self.process.start()
        other.close()

    def _compile(self, pipe: Connection) -> None:
        os.dup2(self.words.fileno(), sys.stderr.fileno())
        try:
            pipe.send((usage(self.job.launch, self.job.chip), ""))
        except Exception as error:  # whatever the compiler says is a finding about this kernel
            pipe.send((None, f"{type(error).__name__}: {str(error.__cause__ or error).strip().splitlines()[-1]}"))

    def result(self) -> Result:
        """What came of it, once the process has ended."""
        try:
            found, error = self.pipe.recv()
        except EOFError:
            found, error = None, "the compiler crashed"
        self.process.join()
        with self.words:
            self.words.seek(0)
            said = self.words.read().decode(errors="replace").splitlines()
        if error:  # the compiler's own words, without the dumps around them
            error = next((line for line in said if "error:" in line or "Assertion" in line), error)
        return Result(self.job, found, error)


def table(results: Iterable[Result]) -> str:
    """One line a compilation."""
    head = ("kernel", "case", "chip", "warps", "registers", "spills", "scalars", "stack", "shared", "limit")
    rows = []
    for r in results:
        launch, chip = r.job.launch, CHIPS[r.job.chip]
        case = r.job.cases[0] + (f" + {len(r.job.cases) - 1}" if len(r.job.cases) > 1 else "")
        taken = ("-",) * 5 if r.usage is None else astuple(r.usage)
        rows.append((launch.name, case, r.job.chip, launch.blocks.warps, *taken, chip.smallest))
    return aligned(head, rows)


def complaints(results: Iterable[Result]) -> list[str]:
    """One line for each compilation that is not as it should be."""
    return [
        f"{r.job.launch.name} on {r.job.chip} ({r.job.launch.blocks.sizes}, {r.job.launch.blocks.warps} warps, "
        f"{r.job.launch.blocks.stages} stages; {r.job.cases[0]}): {'; '.join(r.faults)}"
        for r in results
        if r.faults
    ]


def summary(results: Sequence[Result], calls: int) -> str:
    """What was compiled and what came of it, in one line."""
    faulty = sum(bool(r.faults) for r in results)
    kernels, chips = {r.job.launch.name for r in results}, {r.job.chip: None for r in results}
    verdict = f"{faulty} FAIL" if faulty else "no spills, no stack, shared memory and registers within every limit"
    return (
        f"{len(results)} compilations of {len(kernels)} kernels from {calls} calls, forward and backward, "
        f"for {', '.join(chips)}: {verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gate; 0 if all is well, 1 if not, 2 if it cannot run."""
    parser = argparse.ArgumentParser("python -m benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="+", choices=list(CHIPS), default=list(CHIPS))
    parser.add_argument("--kernels", nargs="+", default=[], help="only kernels whose names begin so")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    if INTERPRETED:
        print("aot: TRITON_INTERPRET is set, and interpreted kernels cannot be compiled; unset it", file=sys.stderr)
        return 2
    started = time.perf_counter()
    cases = selected(compiled_cases(), options.kernels)
    todo = [job for chip in options.chips for job in jobs(record(cases, chip), chip, options.kernels)]
    results = run(todo, options.workers)
    print(table(results))
    found = complaints(results)
    print(f"\n{summary(results, len(cases))} ({time.perf_counter() - started:.0f} s)")
    print("\n".join(found))
    return max(bool(found), 0 if options.kernels else traffic.main([]))


if __name__ == "__main__":
    sys.exit(main())
