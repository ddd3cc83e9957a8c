"""Reports hold the numbers they were given, and tables are aligned."""

import json

import pytest

from benchmarks.checks import Outcome
from benchmarks.device_report import Report, places
from benchmarks.measure import Absence, Figure
from fastav.cost.tables import aligned
from fastav.cost.timing import Spread


def figure(contender, median):
    # 3 MB in `median` seconds, beside a copy of 100 GB/s.
    return Figure("distill AVE", contender, "forward", Spread(median, median, 2 * median, 9), 3_000_000,
                  3e6 / median / 1e11)  # fmt: skip


@pytest.fixture
def report():
    return Report(
        {"device": "Some GPU (40 GB)", "date": "2031-02-03 04:05 UTC", "torch": "9.9"},
        bandwidth=1e11,
        outcomes=[Outcome("accuracy", "passed", "21 calls", 1.25), Outcome("graphs", "skipped", "no GPU", 0.0)],
        figures=[figure("ours", 40e-6), figure("eager", 500e-6)],
        absences=[Absence("distill AVE", "xformers", "it cannot")],
        branch={"ours": Spread(1e-3, 1e-3, 1e-3, 3), "eager": Spread(12.5e-3, 12e-3, 13e-3, 3)},
        steps={"training step, fused": (Spread(0.108, 0.1, 0.11, 3), Spread(1.0815, 1.08, 1.09, 3))},
    )


def cells(text, *start):
    """The row of a table that begins with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return next(row for row in rows if row[: len(start)] == list(start))


def test_launches_beyond_what_is_allowed_fail(report):
    report.launches = {"Mettle": (12, 24), "MoLT": (25, 30)}
    assert report.failed == ["MoLT launches (25, 30) times, forward and backward, allowed are (24, 48)"]
    assert cells(report.markdown(), "MoLT") == ["MoLT", "25", "30", "24", "48"]


def test_markdown_holds_the_figures(report):
    text = report.markdown()
    # 3 MB / 40 us = 75 GB/s, three quarters of the copy; eager takes 12.5 times as long.
    assert cells(text, "ours", "forward") == ["ours", "forward", "40.0 us", "40.0 us", "75.0", "0.75", "1.00 x"]
    assert cells(text, "eager", "forward") == ["eager", "forward", "500.0 us", "500.0 us", "6.0", "0.06", "12.50 x"]
    assert cells(text, "distill AVE") == ["distill AVE", "xformers", "it cannot"]
    assert cells(text, "training step, fused") == [
        "training step, fused", "108.00 ms", "10.00 ms", "1.081 x", "0.010"]  # fmt: skip
    assert "A copy moves 100.0 GB/s" in text
    assert cells(text, "graphs")[1] == "skipped"


def test_reports_are_written_beside_each_other(report, tmp_path):
    written = []
    for _ in range(2):
        written.append(places(tmp_path, report.environment))
        report.write(written[-1])
    first, second = written
    assert [path.relative_to(tmp_path).as_posix() for path in (*first, *second)] == [
        "some-gpu-40-gb/2031-02-03.json",
        "some-gpu-40-gb/2031-02-03.md",
        "some-gpu-40-gb/2031-02-03-2.json",
        "some-gpu-40-gb/2031-02-03-2.md",
    ]
    written = json.loads(first[0].read_text())
    assert written["figures"][1]["spread"]["median"] == 500e-6
    assert written["figures"][0]["gigabytes"] == pytest.approx(75.0)
    assert written["environment"]["torch"] == "9.9"
    assert first[1].read_text() == report.markdown()


def test_failures_are_told(report):
    assert report.failed == []
    report.outcomes.append(Outcome("autocast", "failed", "differs", 0.1))
    report.absences.append(Absence("fuse mean", "ours", "WrongError: off"))
    assert report.failed == ["autocast: differs", "fuse mean: WrongError: off"]


def test_spread():
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.low, spread.median, spread.high, spread.iqr, spread.rounds) == (2.0, 3.0, 4.0, 2.0, 5)


def test_tables_are_aligned():
    text = aligned(("name", "number"), [("a", 1.5), ("longer", 12)])
    assert text.splitlines() == ["name    number", "------  ------", "a          1.5", "longer      12"]
    assert aligned(("name", "number"), [("a", 7)], markdown=True).splitlines()[1] == "| ---- | -----: |"
