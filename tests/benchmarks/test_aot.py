"""The ahead-of-time gate: it sees spills, stacks and shared memory, and it compiles what is launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]

# Kernels for the compiler, which interpreted ones are not: these tests run in a process without TRITON_INTERPRET.
SCRIPT = """
import torch, triton, triton.language as tl
from benchmarks import aot, resources
from fastav.kernels.launch import Blocks, Launch, Traffic

@triton.jit
def spilling_kernel(x, out, N: tl.constexpr):
    o = tl.arange(0, N)
    b_x = tl.load(x + o[:, None] * N + o[None, :])
    tl.debug_barrier()
    b_y = tl.load(x + o[:, None] + N * o[None, :])
    tl.debug_barrier()
    tl.store(out + o[:, None] * N + o[None, :], tl.dot(b_x, b_y) * b_x + b_y)

@triton.jit
def calm_kernel(x, out, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(out + o, tl.load(x + o))

@triton.jit
def crashing_kernel(x, out, N: tl.constexpr):
    tl.static_assert(N < 0, "no size is good enough")

def job(kernel, chip, size, warps):
    x = torch.empty(size * size)
    launch = Launch(kernel, 1, {"x": x, "out": x}, {"N": size}, Blocks({}, warps, 2, ""), Traffic())
    return aot.Job(launch, chip, ("a case",))

jobs = [job(spilling_kernel, "sm_90", 128, 1), job(calm_kernel, "sm_90", 128, 1), job(calm_kernel, "gfx942", 128, 1),
        job(crashing_kernel, "sm_80", 128, 1)]
results = aot.run(jobs, 2)
print(aot.table(results))
print("\\n".join(aot.complaints(results)))
print(aot.summary(results, 1))
"""


def run(*command):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    script = tmp_path_factory.mktemp("aot") / "script.py"
    script.write_text(SCRIPT)
    done = run(sys.executable, str(script))
    assert done.returncode == 0, done.stderr
    return done.stdout


def row(report, kernel, chip):
    return next(line.split() for line in report.splitlines() if line.startswith(kernel) and f" {chip} " in line)


def test_a_kernel_made_to_spill_fails(report):
    # ... warps registers spills scalars stack shared limit: 128 x 128 floats do not fit into one warp's registers.
    warps, _, spills, _, stack, _, limit = map(int, row(report, "spilling_kernel", "sm_90")[-7:])
    assert (warps, limit) == (1, 99 << 10)
    assert spills > 1000
    assert stack > 1000
    line = next(line for line in report.splitlines() if line.startswith("spilling_kernel on sm_90"))
    assert f"spills {spills} bytes; has a stack frame of {stack} bytes" in line


def test_a_calm_kernel_passes(report):
    for chip in ("sm_90", "gfx942"):
        _, registers, spills, scalars, stack, shared, _ = map(int, row(report, "calm_kernel", chip)[-7:])
        assert 0 < registers < 64
        assert (spills, scalars, stack, shared) == (0, 0, 0, 0)
    assert "calm_kernel on" not in report


def test_a_kernel_that_does_not_compile_is_a_finding_and_no_end(report):
    assert "crashing_kernel on sm_80" in report
    assert "does not compile" in report
    assert report.splitlines()[-1].endswith("2 FAIL")


def test_the_gate_compiles_real_launches_and_tells_by_its_status():
    done = run(sys.executable, "-m", "benchmarks.aot", "--chips", "sm_90", "--kernels", "orthogonality")
    assert done.returncode in (0, 1), done.stderr
    assert ("FAIL" in done.stdout) == bool(done.returncode)
    assert "orthogonality_fwd_kernel" in done.stdout
    assert "distill" not in done.stdout


def test_the_gate_refuses_interpreted_kernels():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.aot"],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr


def test_limits():
    from benchmarks.resources import CHIPS, Usage

    good = Usage(registers=128, spills=0, scalars=0, stack=0, shared=99 << 10)
    assert list(good.faults("sm_90", 8)) == []
    assert CHIPS["sm_90"].register_limit(8) == 255  # 65536 / 256 threads, but no thread can address more than 255
    assert CHIPS["sm_80"].register_limit(16) == 128
    assert CHIPS["gfx942"].register_limit(4) == 512
    assert CHIPS["gfx942"].register_limit(8) == 256
    faults = {
        "needs 128 registers, 32 warps can have 64": (good, "sm_90", 32),
        "uses 101376 bytes of shared memory, gfx942 has 65536": (good, "gfx942", 4),
        "uses 101377 bytes of shared memory, the smallest chips of its kind have 101376": (
            Usage(1, 0, 0, 0, 101377), "sm_80", 4),
        "uses 200000 bytes of shared memory, sm_80 has 166912": (Usage(1, 0, 0, 0, 200000), "sm_80", 4),
        "spills 3 vector registers": (Usage(1, 3, 0, 0, 0), "gfx942", 4),
        "spills 5 scalar registers": (Usage(1, 0, 5, 0, 0), "gfx942", 4),
    }  # fmt: skip
    for fault, (usage, chip, warps) in faults.items():
        assert list(usage.faults(chip, warps)) == [fault]
