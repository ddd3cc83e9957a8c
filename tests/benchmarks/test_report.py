"""The report of ``pytest benchmarks``, from given figures and from a run."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from benchmarks import figures, report
from tests.cost.test_measure import GIVEN, cells

ROOT = Path(__file__).parents[2]
STATS = {"median": 2e-3, "iqr": 1e-4}


def values():
    method = {"kind": "method", "size": "small pair", "batch": "one clip", "memory": 384 << 20}
    own = {**method, **GIVEN.as_dict()}
    peer = {**own, "method": "lavish", "saved": {"taps": 0, "backbones": 50_000_000, "method": 0, "head": 0}}
    peer["step"] = {**own["step"], "median": own["step"]["median"] / 2}
    peer["peak"] = {"bytes": 49_200_000, "reserved": None}
    scaling = {
        "kind": "scaling",
        "size": "small pair",
        "method": "mettle",
        "axis": "clips",
        "saved": 1_000_000,
        "peak": 3_400_000,
        "step": 0.2,
    }
    store = {"kind": "store", "size": "small pair", "method": "molt", "batch": "an epoch of 4 clips", "clips": 4,
             "bytes": 2_000_000, "dtype": "float16", "through": 8.0, "stored": 0.4,
             "times as fast": 20.5, "quartiles": [19.0, 21.0]}  # fmt: skip
    op = {"kind": "op", "case": "distill", "by": "ours", "dtype": "float32", "direction": "forward",
          "spread": {"median": 2e-3, "low": 2e-3, "high": 2.1e-3, "rounds": 5, "late": 4},
          "operations": 4e6, "bytes": 1e6, "GB/s": 0.5, "share of copy bandwidth": 0.25}  # fmt: skip
    infos = [
        own,
        peer,
        {**own, "batch": "largest"},
        {**peer, "batch": "one clip, checkpointed"},
        {**scaling, "value": 1, "over frozen": 1.1, "quartiles": [1.0, 1.25]},
        {**scaling, "value": 2, "over frozen": 1.2, "quartiles": [1.1, 1.3]},
        store,
        op,
    ]
    return {
        "benchmarks": [{"extra_info": info, "stats": STATS} for info in infos],
        "environment": {"device": "Some CPU", "torch": "9.9", "date": "2031-02-03 04:05 UTC"},
        "absences": [
            {"method": "lavish", "batch": "largest", "reason": "not even one clip fits"},
            {"method": "lavish", "batch": "4 clips", "reason": "it is too large"},
        ],
        "copy bandwidth": 2e9,
        "matmul rate": 5e10,
    }


@pytest.fixture
def accuracy(tmp_path):
    one = {"method": "mettle", "title": "Mettle", "accuracy": 71.0, "deviation": 1.0, "saved": 4e6}
    path = tmp_path / "accuracy.json"
    others = [{"title": "mean-pooled", "accuracy": 64.0}]
    told = {
        "title": "Some task",
        "methods": [one, {**one, "method": "lavish"}],
        "without cost": others,
        "notes": "Measured somewhere.",
    }
    path.write_text(json.dumps(told))
    return path


def test_report_holds_the_figures(tmp_path, accuracy):
    pytest.importorskip("matplotlib")
    written = report.write_report(values(), tmp_path, accuracy)
    costs = ["costs-one-clip.png", "costs-largest.png", "costs-one-clip-checkpointed.png"]
    names = ["report.md", *costs, "scaling.png", "roofline.png", "accuracy.png"]
    assert [path.name for path in written] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    text = written[0].read_text()
    assert text.startswith("# What training costs: Some CPU, 2031-02-03 04:05 UTC")
    assert "## small pair, 10 segments a clip, the largest batch that fits into 384 MiB" in text
    assert "## small pair, 10 segments a clip, one clip, checkpointed" in text
    assert text.count("run again in backward") == 1
    assert "LAVISH was not measured: not even one clip fits." in text
    assert "LAVISH, 4 clips, was not measured: it is too large." in text
    # 5 MB of 50 MB, 12.3 of 49.2 MB, twice as long, and as many of its own frozen forward's.
    assert cells(text, "Mettle", "LAVISH") == ["Mettle", "LAVISH", "0.100", "0.250", "2.000", "1.000"]
    assert cells(text, "Mettle", "clips", "2") == ["Mettle", "clips", "2", "1.0", "3.4", "200", "1.20", "1.10 ... 1.30"]
    stored = ["MoLT", "2.0", "float16", "2000", "100", "20.5", "19.0 ... 21.0"]
    assert cells(text, "MoLT", "2.0") == stored
    assert cells(text, "distill") == ["distill", "forward", "ours", "2.00 ms (host)", "100.0 us", "0.5", "0.25"]
    assert "Measured somewhere." in text
    assert all(name in text for name in names[1:])


def test_no_label_lies_on_another_or_on_a_point(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    extent = pytest.importorskip("matplotlib.text").Text.get_window_extent  # an annotation's own holds its line too
    drawn = []
    monkeypatch.setattr(figure, "savefig", lambda self, path: drawn.append(self))
    saved = (9, 6, 20, 150, 170, 175, 180, 190)
    names = ("Mettle", "MoLT", "ladder side tuning", "LoRA", "naive adapters", "LAVISH", "DG-SCT", "full fine-tuning")
    methods = [
        {"method": name.lower(), "title": name, "accuracy": 66 + number % 3, "deviation": 1.0, "saved": size * 1e6}
        for number, (name, size) in enumerate(zip(names, saved, strict=True))
    ]
    figures.draw_accuracy(methods, [], tmp_path / "a.png", "title")
    panel = drawn[0].axes[0]
    drawn[0].draw_without_rendering()
    boxes = {text.get_text(): extent(text) for text in panel.texts}
    assert sorted(boxes) == sorted(names)
    assert [a for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])] == []
    points = [panel.transData.transform((one["saved"] / 1e6, one["accuracy"])) for one in methods]
    assert [name for name, box in boxes.items() if box.count_contains(points)] == []
    assert all(panel.bbox.contains(*corner) for box in boxes.values() for corner in box.corners())


def test_report_goes_without_what_was_not_run(tmp_path):
    pytest.importorskip("matplotlib")
    some = values()
    some["benchmarks"] = some["benchmarks"][-1:]
    written = report.write_report(some, tmp_path, tmp_path / "none.json")
    assert [path.name for path in written] == ["report.md", "roofline.png"]


def test_runs_of_one_machine_are_put_together_and_of_two_refused(tmp_path):
    pytest.importorskip("matplotlib")
    one, other = values(), values()
    one["benchmarks"], other["benchmarks"] = one["benchmarks"][:1], other["benchmarks"][1:2]
    for name, run in (("one", one), ("other", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    out = tmp_path / "out"
    assert report.main([*(str(tmp_path / f"{n}.json") for n in ("one", "other")), "--out", str(out)]) == 0
    assert cells((out / "report.md").read_text(), "Mettle", "LAVISH")[2] == "0.100"
    whole = json.loads((out / "benchmarks.json").read_text())
    assert whole["benchmarks"] == one["benchmarks"] + other["benchmarks"]
    assert len(whole["absences"]) == 4
    other["environment"] = {"device": "Another"}
    with pytest.raises(ValueError, match="the runs are of device Another and Some CPU"):
        report.together([one, other])


def test_what_is_measured_twice_or_of_two_sizes_is_refused(tmp_path, capsys):
    one, other = values(), values()
    with pytest.raises(ValueError, match="several of the runs hold method, mettle, one clip; a report holds"):
        report.together([one, other])
    other["benchmarks"] = [{"extra_info": {**values()["benchmarks"][0]["extra_info"], "size": "AVE step"}}]
    with pytest.raises(ValueError, match="the runs are of AVE step and small pair; a report is of one pair"):
        report.together([one, other])
    del one["benchmarks"][0]["extra_info"]["ops"]
    (tmp_path / "old.json").write_text(json.dumps(one))
    with pytest.raises(SystemExit) as ended:
        report.main([str(tmp_path / "old.json")])
    assert ended.value.code == 2
    assert "what is said of mettle lacks ops: another version of pytest benchmarks" in capsys.readouterr().err


def test_what_the_machine_does_is_told_by_the_run_that_holds_the_ops():
    one, other = values(), values()
    one["benchmarks"], other["benchmarks"] = one["benchmarks"][:-1], other["benchmarks"][-1:]
    one["copy bandwidth"] = 9e9
    for runs in ([one, other], [other, one]):
        assert report.together(runs)["copy bandwidth"] == 2e9


def test_ours_come_first_whatever_was_measured_first(tmp_path):
    pytest.importorskip("matplotlib")
    some = values()
    some["benchmarks"] = some["benchmarks"][1::-1]  # LAVISH, then Mettle
    text = report.write_report(some, tmp_path, tmp_path / "none")[0].read_text()
    assert text.index("| Mettle") < text.index("| LAVISH")


def test_roofline_has_a_panel_for_each_call(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn = []
    monkeypatch.setattr(figure, "savefig", lambda self, path: drawn.append(self))
    op = values()["benchmarks"][-1]["extra_info"]
    ops = [op, {**op, "by": "eager"}, {**op, "case": "distill, wider", "operations": 8e6}, {**op, "operations": 0}]
    figures.draw_roofline(ops, 2e9, 5e10, tmp_path / "r.png", "Some CPU")
    first, second = drawn[0].axes
    assert [panel.get_title() for panel in (first, second)] == [
        f"{case}, float32: forward (o), forward + backward (□)" for case in ("distill", "distill, wider")
    ]
    assert {"ours", "eager"} <= {text.get_text() for text in first.texts}
    points = [tuple(float(v[0]) for v in line.get_data()) for line in second.lines[1:]]
    assert points == [pytest.approx((8.0, 4.0))]  # 8 operations a byte, 8 million in 2 ms


def test_command_writes_beside_the_json(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "b.json").write_text(json.dumps(values()))
    assert report.main([str(tmp_path / "b.json"), "--accuracy", str(tmp_path / "none")]) == 0
    assert (tmp_path / "report.md").is_file()
    assert str(tmp_path / "report.md") in capsys.readouterr().out


def test_pytest_benchmarks_ends_with_a_report(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "pytest", "benchmarks/test_ops.py", "-q", "-p", "no:xdist",
               "-k", "orthogonality and eager", "--report", str(tmp_path)]  # fmt: skip
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"report: {tmp_path / 'benchmarks.json'}, {tmp_path / 'report.md'}" in done.stdout
    assert "orthogonality" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "benchmarks.json").read_text())["environment"]["torch"]


def test_a_report_of_nothing_but_absences_says_why(tmp_path):
    """As where a method's process skips all that it should measure."""
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    (tmp_path / "peft.py").write_text("raise ImportError('it is broken')")
    command = [sys.executable, "-m", "pytest", "benchmarks/test_methods.py", "-q", "-p", "no:xdist",
               "-k", "[lora- and one", "--report", str(tmp_path)]  # fmt: skip
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    alone["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "LoRA, one clip, was not measured: " in (tmp_path / "report.md").read_text()
    told = json.loads((tmp_path / "benchmarks.json").read_text())
    assert [(one["method"], one["batch"]) for one in told["absences"]] == [
        ("lora", "one clip"), ("lora", "one clip, checkpointed")]  # fmt: skip
    assert told["benchmarks"] == []
