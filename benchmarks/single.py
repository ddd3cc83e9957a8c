"""Run calls of the ops once, forward and backward: what profilers and sanitizers are pointed at.

``python -m benchmarks.single [NAME] [--tiny]`` runs the timed workloads whose names begin with NAME.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.contenders import ours
from benchmarks.workloads import DIRECTIONS, FULL, TINY, workloads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0, or 2 if no call has the name."""
    parser = argparse.ArgumentParser("python -m benchmarks.single", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--tiny", action="store_true", help="at the CPU's sizes, taps in both dtypes")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizings = [TINY, replace(TINY, taps=FULL.taps)] if options.tiny else [FULL]
    found = [w for sizing in sizings for w in workloads(sizing, device)]
    chosen = [replace(w, clones_at_most=1) for w in found if w.case.name.startswith(options.name)]
    for workload in chosen:
        workload.calls(ours(workload.case.op), DIRECTIONS[-1])[0]()
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"ran {len(chosen)} calls: {', '.join(w.case.name for w in chosen)}")
    return 0 if chosen else 2


if __name__ == "__main__":
    sys.exit(main())
