"""The races on a CPU as a whole, small, and the report of given numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastav
from benchmarks.device_report import places
from benchmarks.measure import Absence
from benchmarks.memory import Peak
from benchmarks.race import Lap
from benchmarks.race_report import Bandwidth, RaceReport

ROOT = Path(__file__).parents[2]
BOTH = "forward + backward"


def test_all_of_it_runs_small(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run_cpu", "--smoke", "--threads", "1", "--results", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.glob("*/*.json")
    report = json.loads(written.read_text())
    assert report["failed"] == []
    raced = {(lap["race"], lap["by"], lap["direction"]) for lap in report["laps"]}
    for by in ("ours", "eager", "plain", "sdpa", "stacked", "compile", "folded", "folded compile"):
        assert {("distill small fp32", by, "forward"), ("distill small fp32", by, BOTH)} <= raced
    for race in ("attend D x D fp32", "attend D x D bf16", "attend D x 16 fp32", "side branch small"):
        assert (race, "ours", BOTH) in raced
    assert ("attend D x D fp32", "(ours, distill small fp32 alone)", BOTH) in raced
    for op in ("project values", "project outputs", "fuse mean", "fuse by token", "inject", "orthogonality"):
        assert {(f"{op} fp32", by, BOTH) for by in ("ours", "eager", "plain", "compile")} <= raced
    paths = [by for by in ("ours, avx2", "ours, portable") if ("distill small fp32", by, BOTH) in raced]
    assert len(paths) == (2 if report["environment"]["vector path"] == "avx512" else len(paths))
    for lap in report["laps"]:
        assert len(lap["times"]) == 5
        assert min(lap["times"]) > 0
    assert [b["threads"] for b in report["bandwidths"]] == [1]
    assert {peak["by"] for peak in report["peaks"]} == {"ours", "plain"}
    assert all(peak["bytes"] is not None for peak in report["peaks"])
    assert "# " in written.with_suffix(".md").read_text()


@pytest.mark.skipif(fastav.backends()["native"].usable, reason="this is what it says without native kernels")
def test_without_native_kernels_it_says_so(capsys):
    from benchmarks import run_cpu

    assert run_cpu.main([]) == 2
    assert "there is nothing to race" in capsys.readouterr().err


@pytest.fixture
def report():
    def lap(by, *times, direction=BOTH, race="distill AVE fp32"):
        return Lap(race, by, direction, 2, times, 600_000_000, 12_000_000_000, 0.25)

    return RaceReport(
        {"device": "Some CPU", "date": "2031-02-03 04:05 UTC"},
        [Bandwidth(2, copy=40e9, read=20e9)],
        [
            lap("plain", 0.3, 0.3, 0.6, 0.3),
            lap("ours", 0.06, 0.06, 0.12, 0.06),
            lap("ours, avx2", 0.1, 0.1, 0.1, 0.1),
            lap("folded", 0.12, 0.18, 0.24, 0.12),
            lap("ours", 0.03, 0.03, 0.03, 0.03, direction="forward"),
            lap("ours", 0.08, 0.08, 0.08, 0.08, race="attend D x D fp32"),
            lap("(ours, distill AVE fp32 alone)", 0.06, 0.06, 0.06, 0.06, race="attend D x D fp32"),
            lap("literal", 1.2, 1.2, 1.2, 1.2, race="attend D x D fp32"),
        ],
        [Peak("distill AVE fp32", "plain", 90_000_000), Peak("distill AVE fp32", "ours", 30_000_000),
         Peak("distill AVE fp32", "stacked", None, "killed")],
        {"ours": 0.5, "plain": 400.0},
        5.3,
        [Absence("distill AVE fp32", "sdpa", "it cannot")],
    )  # fmt: skip


def rows(text, *start):
    """The rows of a table that begin with these cells."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [row for row in found if row[: len(start)] == list(start)]


def test_the_report_holds_the_figures(report):
    text = report.markdown()
    # 600 MB in 60 ms are 10 GB/s, half of what the machine reads and a quarter of what it copies; 12 GFLOP in 60 ms.
    assert rows(text, BOTH, "2", "ours") == [
        [BOTH, "2", "ours", "60.00 ms", "60.00 ms to 75.00 ms", "1.00 x", "10.0", "0.50", "0.25", "200", "0.250"],
        [BOTH, "2", "ours", "80.00 ms", "80.00 ms to 80.00 ms", "1.00 x", "7.5", "0.38", "0.19", "150", "0.250"],
    ]
    # Rounds of 2, 3, 2 and 2 times ours: the median of the ratios, where the ratio of the medians would be 2.5.
    assert rows(text, BOTH, "2", "folded")[0][5] == "2.00 x"
    assert rows(text, "distill AVE fp32", "2")[0][2:] == [
        "ours", "60.00 ms", "folded", "150.00 ms", "2.00 x", "2.00 to 2.25"]  # fmt: skip
    assert [row[2] for row in rows(text, BOTH, "2")][:4] == ["ours", "ours, avx2", "folded", "plain"]  # by time
    # Both of ours beside the literal form: with the products of the projections, and without.
    assert [(row[2], row[6]) for row in rows(text, "attend D x D fp32", "2")] == [
        ("ours", "15.00 x"), ("(ours, distill AVE fp32 alone)", "20.00 x")]  # fmt: skip
    assert rows(text, "distill AVE fp32", "plain")[0][2:] == ["90.0", "3.00 x"]
    assert rows(text, "distill AVE fp32", "stacked")[0][2:] == ["killed", "-"]
    assert rows(text, "distill AVE fp32", "sdpa")[0][2:] == ["it cannot"]
    assert "ours 0.5, plain 400.0" in text
    assert "**FAILED**" not in text


def test_failures_are_told(report, tmp_path):
    assert report.failed == []
    report.growth["ours"] = 6.0
    report.absences.append(Absence("inject fp32", "ours, avx2", "WrongError: off"))
    assert report.failed == [
        "inject fp32: ours, avx2: WrongError: off",
        "ours takes 6.00 bytes more a token, allowed 5.30",
    ]
    first, second = places(tmp_path, report.environment)
    report.write((first, second))
    assert first.relative_to(tmp_path).as_posix() == "some-cpu/2031-02-03.json"
    assert json.loads(first.read_text())["failed"] == report.failed
    assert json.loads(first.read_text())["laps"][1]["spread"]["median"] == 0.06
    assert "**FAILED**" in second.read_text()
