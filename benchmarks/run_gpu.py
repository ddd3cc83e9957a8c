"""Prove and measure everything on the GPU at hand: ``python -m benchmarks.run_gpu``.

First what ``pytest benchmarks`` does, in a process of its own: every method at the AVE step, ours and the peers', each
checked, how its cost grows, and the ops under the roofline; to ``benchmarks/results/<device>/<date>-methods``. Then the
checks of the ops (:mod:`benchmarks.checks`), every contender on every op by the device's own clock, the side branch as
a whole, training steps, and a profile of the call that is furthest from the copy bandwidth; to ``<date>.json`` and
``.md`` beside it. ``--part`` does one of the two. The exit status is 1 if a check fails or fastav's own ops cannot be
timed, and 2 without a GPU. ``--smoke`` does all of it at small sizes on any device, to see that it runs: on a CPU, with
``TRITON_INTERPRET=1`` and ``FASTAV_BACKEND=triton``, in Triton's interpreter.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import checks
from benchmarks.cases import HALVES, SIDES, SMALL, SMALL_SIDE, SWIN_STAGES
from benchmarks.device_report import Report, places
from benchmarks.environment import ROOT, environment
from benchmarks.measure import survey
from benchmarks.profiles import profiled, slowest
from benchmarks.side import ave_pair, branch_figures, small_pair, step_figures
from benchmarks.timing import copy_bandwidth
from benchmarks.workloads import FULL, TINY, workloads

RESULTS = Path(__file__).parent / "results"

#: What ``pytest benchmarks`` measures, and the ops with the side branch.
PARTS = ("methods", "ops")


def full_scale(device: torch.device) -> checks.Scale:
    """The checks at the sizes of two segments of the AVE step: what float64 has room for on any card."""
    return checks.Scale(device, replace(SIDES["AVE"], segments=2), SWIN_STAGES)


def small_scale(device: torch.device) -> checks.Scale:
    """The checks at small sizes; compiled code is traced and not generated."""
    return checks.Scale(device, SMALL_SIDE, SMALL[:2], (HALVES[1],), "aot_eager")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and write the report."""
    parser = argparse.ArgumentParser("python -m benchmarks.run_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes, on any device")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where reports go")
    parser.add_argument("--rounds", type=int, default=30, help="how often each call is timed")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="what to do of it")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.smoke:
        print("run_gpu: there is no CUDA or ROCm device here; --smoke runs all of it small on a CPU", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    failed = []
    if "methods" in options.part:  # first, while this process holds nothing of the device's memory
        failed += run_methods(device, options.results, smoke=options.smoke)
    if "ops" in options.part:
        failed += run_ops(device, options.results, 3 if options.smoke else options.rounds, smoke=options.smoke)
    print("\n".join(f"FAILED {line}" for line in failed))
    return int(bool(failed))


def run_ops(device: torch.device, results: Path, rounds: int, *, smoke: bool) -> list[str]:
    """Check and time the ops and the side branch; what failed."""
    report = Report(environment(device), copy_bandwidth(device))
    for outcome in checks.run(small_scale(device) if smoke else full_scale(device)):
        print(
            f"{outcome.name}: {outcome.status}, {outcome.detail.splitlines()[0]} ({outcome.seconds:.1f} s)", flush=True
        )
        report.outcomes.append(outcome)
    timed = workloads(TINY, device)[:1] if smoke else workloads(FULL, device)
    report.figures, report.absences = survey(timed, report.bandwidth, rounds)
    pair = small_pair(device) if smoke else ave_pair(device, clips=8)
    report.branch = dict(branch_figures(pair, rounds))
    report.steps = dict(step_figures(pair, rounds))
    worst = slowest(report.figures)
    report.profile = profiled(next(w for w in timed if w.case.name == worst))
    written = report.write(results)
    print(report.markdown())
    print(f"written to {os.path.relpath(written[0])} and {os.path.relpath(written[1])}")
    return report.failed


def run_methods(device: torch.device, results: Path, *, smoke: bool) -> list[str]:
    """Do what ``pytest benchmarks`` does, in a process of its own; what failed."""
    folder = places(results, environment(device), "-methods")[0].with_suffix("")
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-quiet", "--report", str(folder)]
    # In the interpreter our own ops would take minutes on real backbones.
    command += ["benchmarks/test_methods.py", "-k", "frozen and one"] if smoke else ["benchmarks", "--full"]
    done = subprocess.run(command, cwd=ROOT, check=False)
    print(f"written to {os.path.relpath(folder)}")
    return [f"pytest benchmarks ended with {done.returncode}"] if done.returncode else []


if __name__ == "__main__":
    sys.exit(main())
