"""Two runs beside each other."""

import json
from dataclasses import replace

import pytest

from benchmarks import repeat
from fastav.cost import Spread
from tests.cost.test_measure import GIVEN, cells


def run(*costs):
    return {
        "benchmarks": [
            {"extra_info": {"kind": "method", "size": "small", "batch": "one clip", **cost.as_dict()}} for cost in costs
        ]
    }


def test_runs_agree_within_their_spread_and_not_beyond_it():
    """0.2 and 0.1 are the IQRs: medians may be 0.3 apart."""
    for median, agrees in ((2.29, 1), (2.31, 0)):
        second = replace(GIVEN, over_frozen=Spread(median, median - 0.05, median + 0.05, 5))
        table, agreeing, compared = repeat.compare(run(GIVEN), run(second))
        assert (agreeing, compared) == (agrees, 1)
        row = ["Mettle", "2", "5.0", "2.00", f"{median:.2f}", "0.30", "yes" if agrees else "no"]
        assert cells(table, "Mettle") == row


def test_other_bytes_do_not_agree():
    second = replace(GIVEN, saved={**GIVEN.saved, "head": 500_004})
    table, agreeing, _ = repeat.compare(run(GIVEN), run(second))
    assert agreeing == 0
    assert cells(table, "Mettle")[2] == "5000000 and 5000004 B"


def test_other_batches_are_shown_and_not_compared():
    molt = replace(GIVEN, method="molt")
    table, agreeing, compared = repeat.compare(run(GIVEN, molt), run(replace(GIVEN, clips=3), molt))
    assert (agreeing, compared) == (1, 1)
    assert cells(table, "Mettle") == ["Mettle", "2, then 3", "-", "-", "-", "-", "-"]


def test_runs_without_a_common_method_are_refused():
    with pytest.raises(ValueError, match="no method that both runs measured"):
        repeat.compare(run(GIVEN), run(replace(GIVEN, method="molt")))


def test_command_prints_the_table(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(run(GIVEN)))
    assert repeat.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "1 of 1 agree." in capsys.readouterr().out
