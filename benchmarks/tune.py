"""Choose block sizes on the chip at hand and write them down: ``python -m benchmarks.tune``.

For each kernel, block sizes, warps and stages around what ``kernels/blocks.json`` says are tried on the calls that are
timed (:mod:`benchmarks.workloads`). A candidate counts only if its results are right. The fastest, by medians of cold
times, is written to the table with what was measured and where. Nothing is tuned when fastav runs: the table is all
there is. Without a GPU the exit status is 2.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from triton.errors import TritonError

from benchmarks.contenders import ours
from benchmarks.recording import counting
from benchmarks.workloads import DIRECTIONS, FULL, Workload, workloads
from fastav.cost.timing import measure
from fastav.cost.where import device_name
from fastav.kernels import launch

TABLE = Path(launch.__file__).parent / "blocks.json"

#: How often the neighbours of the fastest so far are tried.
PASSES = 2

Entry = dict[str, Any]


def neighbours(entry: Entry) -> list[Entry]:
    """The entry and those that differ from it in one thing: a block size or the warps halved or doubled, the stages."""
    found = [entry]
    for name, size in entry["sizes"].items():
        found += [entry | {"sizes": entry["sizes"] | {name: s}} for s in (size // 2, size * 2) if s >= 16]
    found += [entry | {"warps": w} for w in (entry["warps"] // 2, entry["warps"] * 2) if 1 <= w <= 16]
    return found + [entry | {"stages": s} for s in (1, 2, 3) if s != entry["stages"]]


def tuned(entry: Entry, timer: Callable[[Entry], float], where: str, what: str) -> Entry:
    """The fastest of the entry and its neighbours, with what was measured.

    Args:
        entry: a line of the table.
        timer: median seconds with a candidate's blocks; infinite for one that is wrong or does not run.
        where: the device's name.
        what: the calls whose time it is.

    Raises:
        RuntimeError: no candidate is right.
    """
    times: dict[str, tuple[float, Entry]] = {}
    best = entry
    for _ in range(PASSES):
        for candidate in neighbours(best):
            key = json.dumps(candidate, sort_keys=True)
            if key not in times:
                times[key] = timer(candidate), candidate
        best = min(times.values(), key=lambda pair: pair[0])[1]
    order = sorted(time for time, _ in times.values() if time < math.inf)
    if not order:
        raise RuntimeError(f"{entry['kernel']}: no candidate gives right results")
    next_best = f", next {_words(order[1])}" if len(order) > 1 else ""
    return best | {"why": f"fastest of {len(order)} on {where}: {_words(order[0])}{next_best}, {what}"}


def _words(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def lines(table: Sequence[Entry]) -> str:
    """The table as it is kept: one entry a line, sorted by kernel, chip and sizes of elements."""
    ordered = sorted(table, key=lambda entry: (entry["kernel"], entry["chip"], entry["bytes"]))
    return "[\n  " + ",\n  ".join(json.dumps(entry) for entry in ordered) + "\n]\n"


@contextmanager
def using(table: list[Entry]) -> Iterator[None]:
    """Let launches take their blocks from this table."""
    with patch.object(launch, "_table", lambda: table):
        _forget()
        yield
    _forget()


def _forget() -> None:
    """Empty what the kernels' modules remember of the table."""
    for module in [module for name, module in sys.modules.items() if name.startswith("fastav.kernels")]:
        for function in vars(module).values():
            if isinstance(function, functools._lru_cache_wrapper):
                function.cache_clear()


def time_of(chosen: Sequence[Workload], rounds: int) -> float:
    """Median seconds of the workloads together, forward and backward; infinite if one is wrong or does not run."""
    total = 0.0
    for workload in chosen:
        function = ours(workload.case.op)
        try:
            workload.truth.check(function)
            total += measure(workload.calls(function, DIRECTIONS[-1]), workload.device, rounds).median
        except (AssertionError, RuntimeError, TritonError) as error:
            print(f"  {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            return math.inf
    return total


def launching(kernel: str, available: Sequence[Workload]) -> list[Workload]:
    """The workloads that launch a kernel."""
    found = []
    for workload in available:
        with counting() as launched:
            workload.calls(ours(workload.case.op), DIRECTIONS[-1])[0]()
        if kernel in launched:
            found.append(workload)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune and rewrite the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="+", default=[""], help="only kernels whose names begin so")
    parser.add_argument("--rounds", type=int, default=30, help="how often each candidate is timed")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tune: there is no CUDA or ROCm device here, and nothing can be timed", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    table, chip = json.loads(TABLE.read_text()), launch.chip(device)
    if chip not in {entry["chip"] for entry in table}:
        print(f"tune: the table has no entries of its own for {chip}; tune on a chip that it names", file=sys.stderr)
        return 2
    for size, dtype in ((2, torch.bfloat16), (4, torch.float32)):
        available = workloads(replace(FULL, taps=dtype, learned=dtype), device)
        for i, entry in enumerate(table):
            asked = entry["kernel"].startswith(tuple(options.kernels)) and entry["chip"] == chip
            # Kernels with one entry for all sizes are tuned once, in 16 bits.
            if not asked or size != next(s for s in (2, 4) if s in entry["bytes"]):
                continue
            chosen = launching(entry["kernel"], available)
            if not chosen:
                print(f"{entry['kernel']}: no workload launches it; its entry stays", flush=True)
                continue

            def timer(candidate: Entry, i: int = i, chosen: list[Workload] = chosen) -> float:
                with using([*table[:i], candidate, *table[i + 1 :]]):
                    return time_of(chosen, options.rounds)

            what = f"forward and backward of {', '.join(w.case.name for w in chosen)}"
            table[i] = tuned(entry, timer, device_name(device), what)
            print(json.dumps(table[i]), flush=True)
            TABLE.write_text(lines(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
