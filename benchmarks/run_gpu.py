"""Prove and measure everything on the GPU at hand: ``python -m benchmarks.run_gpu``.

First what ``pytest benchmarks`` does, in processes of its own: every method at the AVE step, ours and the peers', each
checked, how its cost grows, and the ops under the roofline; to ``benchmarks/results/<device>/<date>-methods``, whose
report is there after the first method. Then the
checks of the ops (:mod:`benchmarks.checks`), every contender on every op by the device's own clock, the side branch as
a whole, training steps, and a profile of the call that is furthest from the copy bandwidth; to ``<date>.json`` and
``.md`` beside it, anew after every stage. Then ``fastav profile`` of the same pair with its memory snapshots, and
accuracy beside cost (:mod:`examples.stamps.peers`), which fetches weights and pictures. ``--part`` does some of these.
The exit status is 1 if a part fails, a check does, or fastav's own ops cannot be timed, and 2 without a GPU.
``--smoke`` does the first two at small sizes on any device, to see that they run: on a CPU, with
``TRITON_INTERPRET=1`` and ``FASTAV_BACKEND=triton``, in Triton's interpreter.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import checks
from benchmarks.cases import HALVES, SIDES, SMALL, SMALL_SIDE, SWIN_STAGES
from benchmarks.device_report import Report, places
from benchmarks.environment import ROOT, environment
from benchmarks.measure import Absence, survey
from benchmarks.pairs import AVE
from benchmarks.profiles import profiled, slowest
from benchmarks.side import ave_pair, branches, device_launches, small_pair, step_figures
from benchmarks.timing import copy_bandwidth
from benchmarks.workloads import FULL, TINY, workloads
from fastav.cost import METHODS, OURS
from fastav.cost.room import give_back
from fastav.cost.timing import measure

RESULTS = Path(__file__).parent / "results"

#: What ``pytest benchmarks`` measures, the ops with the side branch, ``fastav profile``, and accuracy beside cost.
PARTS = ("methods", "ops", "profile", "accuracy")
SMOKED = PARTS[:2]


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
    parser.add_argument("--part", choices=PARTS, nargs="+", help="what to do of it")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.smoke:
        print("run_gpu: there is no CUDA or ROCm device here; --smoke runs all of it small on a CPU", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    parts = options.part or (SMOKED if options.smoke else PARTS)
    failed = []
    if "methods" in parts:
        failed += run_methods(device, options.results, smoke=options.smoke)
    if "ops" in parts:
        failed += run_ops(device, options.results, 3 if options.smoke else options.rounds, smoke=options.smoke)
        give_back()  # to the processes that follow
    if "profile" in parts:
        failed += run_profile(device, options.results)
    if "accuracy" in parts:
        failed += run_accuracy(device, options.results)
    print("\n".join(f"FAILED {line}" for line in failed))
    return int(bool(failed))


def run_ops(device: torch.device, results: Path, rounds: int, *, smoke: bool) -> list[str]:
    """Check and time the ops and the side branch; what failed. What breaks is told, and the rest goes on."""
    report = Report(environment(device), copy_bandwidth(device))
    written = places(results, report.environment)

    @contextmanager
    def stage(case: str, contender: str = "ours") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: the other stages take long, and theirs must not be lost
            report.absences.append(Absence.of(case, contender, error))
        give_back()
        report.write(written)

    for outcome in checks.run(small_scale(device) if smoke else full_scale(device)):
        print(
            f"{outcome.name}: {outcome.status}, {outcome.detail.splitlines()[0]} ({outcome.seconds:.1f} s)", flush=True
        )
        report.outcomes.append(outcome)
    timed = workloads(TINY, device)[:1] if smoke else workloads(FULL, device)
    for workload in timed:
        with stage(workload.case.name):
            figures, absences = survey([workload], report.bandwidth, rounds)
            report.figures += figures
            report.absences += absences
    pair = small_pair(device) if smoke else ave_pair(device, clips=8)
    with stage("side branch"):
        for branch in branches(pair):
            with stage("side branch", branch.name):
                branch.check()
                report.branch[branch.name] = measure([branch.run], device, rounds)
    if device.type == "cuda":
        with stage("device launches"):
            report.launches = device_launches(pair)
    with stage("training step"):
        report.steps = step_figures(pair, rounds)
    with stage("profile"):
        worst = slowest(report.figures)
        workload = next(w for w in timed if w.case.name == worst)
        report.profile = profiled(workload)
        workload.release()
    print(report.markdown())
    print(f"written to {os.path.relpath(written[0])} and {os.path.relpath(written[1])}")
    return report.failed


def run_methods(device: torch.device, results: Path, *, smoke: bool) -> list[str]:
    """Do what ``pytest benchmarks`` does, part by part: a broken kernel takes all that follows in its process along."""
    folder = places(results, environment(device), "-methods")[0].with_suffix("")
    # In the interpreter our own ops would take minutes on real backbones.
    chosen = {"frozen": "[frozen- and one"} if smoke else {method: f"[{method}-" for method in METHODS}
    parts = {method: ["benchmarks/test_methods.py", "-k", ids] for method, ids in chosen.items()}
    if not smoke:
        parts |= {name: [f"benchmarks/test_{name}.py"] for name in ("scaling", "store", "ops")}
    failed: list[str] = []
    together: list[str] = []
    for name, what in parts.items():
        failed += _run("pytest", "-q", "--benchmark-quiet", *what, "--report", str(folder / "parts" / name))
        if found := sorted(map(str, folder.glob("parts/*/benchmarks.json"))):
            together = _run("benchmarks.report", *found, "--out", str(folder))
    if found and not together:
        shutil.rmtree(folder / "parts")  # all of it is in what was put together
    return failed + together


def run_profile(device: torch.device, results: Path) -> list[str]:
    """``fastav profile`` of the AVE step, with a memory snapshot of each method; what failed."""
    folder = places(results, environment(device), "-profile")[0].with_suffix("")
    visual = ("--visual.name", "swinv2_large_window12_192", "--visual.pretrained", "false")
    audio = ("--audio.name", "clap_audio_model", "--audio.pretrained", "false")
    options = json.dumps({method: dict(AVE) for method in OURS})
    settings = ("--device", str(device), "--precision", "bfloat16", "--options", options, "--output", str(folder))
    return _run("fastav", "profile", *visual, *audio, *settings)


def run_accuracy(device: torch.device, results: Path) -> list[str]:
    """Train every method on the demo's localisation, and draw accuracy against memory there; what failed."""
    folder = places(results, environment(device), "-accuracy")[0].with_suffix("")
    return _run("examples.stamps.peers", "--device", str(device), "--out", str(folder))


def _run(module: str, *arguments: str) -> list[str]:
    """Run a module in a process of its own; what failed."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False)
    return [f"{' '.join((module, *arguments))} ended with {done.returncode}"] if done.returncode else []


if __name__ == "__main__":
    sys.exit(main())
