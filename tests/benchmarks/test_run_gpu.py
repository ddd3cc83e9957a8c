"""The whole proof run, small, in Triton's interpreter: it is known to work before it meets a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what it says without a GPU")
def test_without_a_gpu_it_says_so(capsys):
    from benchmarks import run_gpu

    assert run_gpu.main([]) == 2
    assert "there is no CUDA or ROCm device here" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the run itself is the test")
def test_all_of_it_runs_in_the_interpreter(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment |= {"TRITON_INTERPRET": "1", "FASTAV_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run_gpu", "--smoke", "--results", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.glob("*/*.json")
    (methods,) = tmp_path.glob("*/*-methods")
    assert "frozen features" in (methods / "report.md").read_text()
    report = json.loads(written.read_text())
    status = {outcome["name"]: outcome["status"] for outcome in report["outcomes"]}
    needs_gpu = ("graphs", "memcheck", "racecheck", "initcheck")
    assert {name for name, found in status.items() if found == "skipped"} == set(needs_gpu)
    assert {name for name, found in status.items() if found == "passed"} == {
        "accuracy", "launches", "determinism", "far offsets", "autocast", "compiling"}  # fmt: skip
    timed = {(figure["contender"], figure["direction"]) for figure in report["figures"]}
    assert {("ours", "forward"), ("ours", "forward + backward"), ("stacked", "forward")} <= timed
    assert {"ours", "eager", "plain"} <= set(report["branch"])
    steps = [f"training step, {schedule}" for schedule in ("serial", "fused", "streamed")]
    assert list(report["steps"]) == ["frozen forward alone", *steps]
    for figure in report["figures"]:
        assert figure["gigabytes"] == pytest.approx(figure["bytes"] / figure["spread"]["median"] / 1e9)


def test_counting_sees_every_launch_by_name():
    script = """
import torch, fastav
from benchmarks.recording import counting
x, q = torch.randn(2, 9, 8), torch.randn(3, 8, requires_grad=True)
with counting() as launches:
    (rows,) = fastav.ops.distill([x], [q])
print(sorted(launches.items()))
with counting() as launches:
    rows.sum().backward()
fastav.ops.distill([x], [q])  # outside: not counted
print(launches["distill_bwd_kernel"], launches.total() <= 2)
"""
    environment = os.environ | {"TRITON_INTERPRET": "1", "FASTAV_BACKEND": "triton"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["[('distill_fwd_kernel', 1)]", "1 True"], done.stderr
