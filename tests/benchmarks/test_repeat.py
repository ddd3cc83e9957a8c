"""Two runs beside each other."""

import json
from dataclasses import replace

import pytest

from benchmarks import repeat
from fastav.cost import Peak, Spread
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
        found = repeat.compare(run(GIVEN), run(second))
        assert (found.compared, found.same, found.agreeing) == (1, 1, agrees)
        row = ["Mettle", "2", "5.0", "12.3", "2.00", f"{median:.2f}", "0.30", "yes" if agrees else "no"]
        assert cells(found.table, "Mettle") == row


def test_other_bytes_do_not_agree():
    second = replace(GIVEN, saved={**GIVEN.saved, "head": 500_004})
    found = repeat.compare(run(GIVEN), run(second))
    assert (found.same, found.agreeing) == (0, 0)
    assert cells(found.table, "Mettle")[2] == "5000000 and 5000004 B"


def test_other_peaks_are_shown():
    found = repeat.compare(run(GIVEN), run(replace(GIVEN, peak=Peak(12_600_000))))
    assert cells(found.table, "Mettle")[3] == "12.3 and 12.6"


def test_other_batches_are_shown_and_not_compared():
    molt = replace(GIVEN, method="molt")
    found = repeat.compare(run(GIVEN, molt), run(replace(GIVEN, clips=3), molt))
    assert (found.agreeing, found.compared) == (1, 1)
    assert cells(found.table, "Mettle") == ["Mettle", "2, then 3", *"------"]


def test_runs_without_a_common_method_are_refused():
    with pytest.raises(ValueError, match="no method that both runs measured"):
        repeat.compare(run(GIVEN), run(replace(GIVEN, method="molt")))


def test_command_prints_the_table_and_fails_where_bytes_differ(tmp_path, capsys):
    other = replace(GIVEN, saved={**GIVEN.saved, "head": 500_004})
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    for path, cost in ((a, GIVEN), (b, GIVEN), (c, other)):
        path.write_text(json.dumps(run(cost)))
    assert repeat.main([str(a), str(b)]) == 0
    assert "1 of 1 keep the same bytes, 1 agree in time too." in capsys.readouterr().out
    assert repeat.main([str(a), str(c)]) == 1
