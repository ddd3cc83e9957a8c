"""Peak memory of one call, forward and backward, over what there was before it: each in a fresh process.

``python -m benchmarks.memory`` is that process: it reads a case's name and a contender's from its command line and
prints bytes. Inputs exist, and everything is loaded, compiled and has run once, before the peak is reset.
"""

import argparse
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.contenders import CONTENDERS, WIDENED
from benchmarks.cpu import CPU, growing, heats
from benchmarks.environment import ROOT
from benchmarks.race import using_threads
from benchmarks.workloads import DIRECTIONS, Workload

#: Free memory goes back to the system at once, so that what is resident is what is in use.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}

#: Bytes by which two measurements of the same may differ: resident pages are counted in portions by each thread.
NOISE = 1 << 19

#: Bytes a token that ours may grow by: less than one number in float32, so nothing is kept for each token.
PER_TOKEN = 4


@dataclass(frozen=True)
class Peak:
    """What one call took at its peak, in bytes, or why nobody knows."""

    case: str
    by: str
    bytes: int | None
    reason: str = ""


def tokens(case: Case) -> int:
    """Tokens of all taps together."""
    taps = case.lists["taps"]
    assert taps is not None
    return sum(b * n for b, n, _ in taps.shapes)


def growth(peaks: Iterable[Peak], smoke: bool = False) -> dict[str, float]:
    """Bytes that each contender takes more for each token more."""
    small, large = growing(smoke=smoke)
    found = {(p.case, p.by): p.bytes for p in peaks}
    more = tokens(large) - tokens(small)
    rates = {}
    for (case, by), size in found.items():
        other = found.get((large.name, by))
        if case == small.name and size is not None and other is not None:
            rates[by] = (other - size) / more
    return rates


def limit(smoke: bool = False) -> float:
    """Bytes a token that ours may grow by, with what cannot be measured."""
    small, large = growing(smoke=smoke)
    return PER_TOKEN + NOISE / (tokens(large) - tokens(small))


def measured(case: str, by: str, *, threads: int, smoke: bool = False) -> Peak:
    """Let a fresh process find out."""
    command = [sys.executable, "-m", "benchmarks.memory", case, by, "--threads", str(threads)]
    done = subprocess.run(
        command + ["--smoke"] * smoke, cwd=ROOT, env=os.environ | MALLOC, capture_output=True, text=True, check=False
    )
    try:
        return Peak(case, by, json.loads(done.stdout.splitlines()[-1])["peak"])
    except (IndexError, ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return Peak(case, by, None, last)


def peak(workload: Workload, by: str) -> int:
    """Bytes by which this process' resident memory rises in one call.

    Raises:
        OSError: the system does not tell.
    """
    op = workload.case.op
    function = (CONTENDERS[op] | WIDENED.get(op, {}))[by](op)
    call = workload.calls(function, DIRECTIONS[-1])[0]
    call()
    call()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before = _resident()
    call()
    return _resident() - before


def _resident() -> int:
    """The peak of the resident memory, in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise OSError("/proc/self/status does not tell the peak of the resident memory")
    return int(found[1]) << 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one call in this process."""
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("case")
    parser.add_argument("by")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="the case at its small size")
    options = parser.parse_args(arguments)
    known = {h.workload.case.name: h.workload.case for h in heats(smoke=options.smoke)}
    known |= {case.name: case for case in growing(smoke=options.smoke)}
    workload = Workload(known[options.case], known[options.case], CPU, clones_at_most=1)
    with using_threads(options.threads):
        print(json.dumps({"peak": peak(workload, options.by)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
