"""The whole proof run, small, in Triton's interpreter: it is known to work before it meets a GPU."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


def test_what_breaks_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    from benchmarks import run_gpu, side

    def broken(*arguments):
        raise RuntimeError("out of memory\nand many lines")

    def late(*arguments):
        raise subprocess.TimeoutExpired("ncu", 900)

    branches = list(side.branches(side.small_pair(torch.device("cpu"))))
    wrong = [dataclasses.replace(one, check=broken) if one.name == "plain" else one for one in branches]
    monkeypatch.setattr(run_gpu.checks, "run", lambda scale: [])
    monkeypatch.setattr(run_gpu, "survey", lambda workloads, bandwidth, rounds: ([], []))
    monkeypatch.setattr(run_gpu, "branches", lambda pair: (one for one in wrong if one.name in ("plain", "ours")))
    monkeypatch.setattr(run_gpu, "step_figures", broken)
    monkeypatch.setattr(run_gpu, "slowest", late)
    failed = run_gpu.run_ops(torch.device("cpu"), tmp_path, 2, smoke=True)
    assert failed == ["training step: RuntimeError: out of memory",
                      "profile: TimeoutExpired: Command 'ncu' timed out after 900 seconds"]  # fmt: skip
    (written,) = tmp_path.glob("*/*.json")
    report = json.loads(written.read_text())
    assert list(report["branch"]) == ["ours"]
    told = [(absence["case"], absence["contender"]) for absence in report["absences"]]
    assert told == [("side branch", "plain"), ("training step", "ours"), ("profile", "ours")]


def test_parts_run_in_processes_of_their_own_and_what_fails_is_told(tmp_path, monkeypatch):
    from benchmarks import run_gpu

    commands = []

    def run(command, **options):
        commands.append(command[2:])
        return subprocess.CompletedProcess(command, 3 if "fastav" in command else 0)

    monkeypatch.setattr(run_gpu.subprocess, "run", run)
    monkeypatch.setattr(run_gpu, "environment", lambda device: {"device": "Some GPU", "date": "2031-02-03 04:05 UTC"})
    device = torch.device("cuda", 0)
    (failed,) = run_gpu.run_profile(device, tmp_path)
    assert failed.startswith("fastav profile --visual.name swinv2_large_window12_192")
    assert failed.endswith("ended with 3")
    assert run_gpu.run_accuracy(device, tmp_path) == []
    assert [command[0] for command in commands] == ["fastav", "examples.stamps.peers"]
    options = json.loads(commands[0][commands[0].index("--options") + 1])
    assert options == {name: {"num_tokens": 8, "heads": 1} for name in ("mettle", "molt")}
    assert commands[1][1:3] == ["--device", "cuda:0"]
    places = [f"{tmp_path}/some-gpu/2031-02-03-{part}" for part in ("profile", "accuracy")]
    assert all(place in command for place, command in zip(places, commands, strict=True))


def test_each_method_has_a_process_and_the_report_what_is_there(tmp_path, monkeypatch):
    """Of three methods: the first one's process breaks, the others' write their figures."""
    from benchmarks import run_gpu

    commands = []

    def run(command, **options):
        commands.append(command[2:])
        what = command[2:]
        if what[0] == "pytest" and "[mettle-" not in what:
            place = Path(what[what.index("--report") + 1])
            place.mkdir(parents=True)
            (place / "benchmarks.json").write_text("{}")
        return subprocess.CompletedProcess(command, 1 if "[mettle-" in what else 0)

    monkeypatch.setattr(run_gpu, "METHODS", ("mettle", "molt", "lora"))
    monkeypatch.setattr(run_gpu.subprocess, "run", run)
    monkeypatch.setattr(run_gpu, "environment", lambda device: {"device": "Some GPU", "date": "2031-02-03 04:05 UTC"})
    (failed,) = run_gpu.run_methods(torch.device("cuda", 0), tmp_path, smoke=False)
    assert "-k [mettle-" in failed
    folder = tmp_path / "some-gpu/2031-02-03-methods"
    names = ("lora", "molt", "ops", "scaling", "store")
    lora, molt, ops, scaling, store = (str(folder / "parts" / name / "benchmarks.json") for name in names)
    reports = [command[1:-2] for command in commands if command[0] == "benchmarks.report"]
    assert reports == [
        [molt],
        [lora, molt],
        [lora, molt, scaling],
        [lora, molt, scaling, store],
        [lora, molt, ops, scaling, store],
    ]
    assert commands[-1][-2:] == ["--out", str(folder)]
    assert not (folder / "parts").exists()


def test_all_that_a_side_branch_gives_the_device_counts(monkeypatch):
    """By a profiler that sees two kernels and a copy, and what the host does."""
    from benchmarks import side

    class Profile:
        def __init__(self, activities):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def events(self):
            kinds = [side.DeviceType.CPU, *[side.DeviceType.CUDA] * 3]
            return [SimpleNamespace(device_type=kind) for kind in kinds]

    monkeypatch.setattr(side, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    pair = side.small_pair(torch.device("cpu"))
    names = ("Mettle", "Mettle, one tap of each backbone", "MoLT")
    assert side.device_launches(pair) == dict.fromkeys(names, (3, 3))


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
