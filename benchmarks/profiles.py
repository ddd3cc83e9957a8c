"""What profilers say of one call."""

import shutil
import subprocess
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import ours
from benchmarks.measure import Figure
from benchmarks.workloads import DIRECTIONS, Workload

#: Nsight Compute's; PyTorch's own kernels are none of these, which draw the arguments.
KERNELS = r"regex:^(distill|project|fuse|inject|orthogonality|linear|sum)_\w*kernel$"
SECONDS = 900
SECTIONS = ("SpeedOfLight", "Occupancy", "MemoryWorkloadAnalysis")


def slowest(figures: list[Figure]) -> str:
    """The call of which fastav's own time is furthest from the copy bandwidth."""
    return min((f for f in figures if f.contender == "ours"), key=lambda f: f.share).case


def profiled(workload: Workload) -> str:
    """Kernels of one call, forward and backward, with their times; with Nsight Compute's sections where it is there."""
    call = workload.calls(ours(workload.case.op), DIRECTIONS[-1])[0]
    call()
    on_gpu = workload.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    said = found.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=48)
    binary = shutil.which("ncu")
    if not on_gpu or binary is None:
        return said
    options = [word for section in SECTIONS for word in ("--section", section)]
    command = [binary, *options, "--kernel-name", KERNELS, sys.executable, "-m", "benchmarks.single"]
    try:
        done = subprocess.run(
            [*command, workload.case.name], capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"{said}\n\nNsight Compute was not done after {SECONDS} s."
    return f"{said}\n\n{done.stdout or done.stderr}"
