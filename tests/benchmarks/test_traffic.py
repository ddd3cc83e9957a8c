"""The traffic count: against hand-counted calls, and its budget."""

import dataclasses
import re

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import cases, traffic
from benchmarks.recording import record
from benchmarks.volume import needed, size


def test_needed_bytes_of_a_hand_counted_call():
    # One tap (2, 3, 4) in bf16, queries (5, 4), weight and bias (4,) in float32; results (2, 5, 4), kept lse (2, 5).
    case = dataclasses.replace(cases.distill([(3, 4)], 2, rows=5), taps=torch.bfloat16)
    taps, queries, affine, results, lse = 2 * 3 * 4 * 2, 5 * 4 * 4, 2 * 4 * 4, 2 * 5 * 4 * 4, 2 * 5 * 4
    assert needed(case, "forward", results, lse) == taps + queries + affine + results + lse
    # Backward: everything again, results and their gradients, lse, and gradients of queries and affine.
    read = taps + queries + affine + results + lse + results
    assert needed(case, "backward", results, lse) == read + queries + affine
    assert size(None) == 0
    assert size([torch.empty(3, dtype=torch.bfloat16), torch.empty(2)]) == 14


def test_a_recorded_call_counts_what_it_needs_and_its_partial_sums():
    case = dataclasses.replace(cases.distill([(3, 16)], 2, rows=16), taps=torch.bfloat16)
    counts = traffic.counts(case, record([case], "sm_90"))
    taps, queries, affine, results, lse = 2 * 3 * 16 * 2, 16 * 16 * 4, 2 * 16 * 4, 2 * 16 * 16 * 4, 2 * 16 * 4
    # Three tokens of 16 channels fit into one program, which leaves no partial sums.
    assert counts["forward"] == traffic.Count(taps + queries + affine + results + lse, counts["forward"].needed, taps)
    assert counts["forward"].partial == 0
    assert counts["backward"].partial >= 0
    both = counts["forward + backward"]
    assert both.moved == counts["forward"].moved + counts["backward"].moved
    assert both.first == taps


def test_a_count_below_what_is_needed_is_a_fault():
    found = {"forward": traffic.Count(99, 100, 90), "forward + backward": traffic.Count(200, 200, 90)}
    assert traffic._faults("here", found, strict=False) == [
        "here: distill forward counts 1 bytes less than it must move"
    ]


def test_the_budget_binds_at_the_reference_setting_only():
    found = {"forward": traffic.Count(1151, 1000, 1000), "forward + backward": traffic.Count(2300, 2000, 1000)}
    assert traffic._faults("here", found, strict=False) == []
    assert traffic._faults("here", found, strict=True) == [
        "here: distill forward moves 1.151 of the taps' bytes, over 1.15"
    ]


def test_the_step_is_within_its_budget(capsys):
    assert traffic.main([]) == 0
    said = capsys.readouterr().out
    reference = [line for line in said.splitlines() if line.startswith("8 clips, taps bf16, queries bf16")]
    forward, both = (float(re.search(r" (\d\.\d{3}) ", line)[1]) for line in reference)
    assert 1.06 < forward <= 1.15
    assert 2.2 < both <= 2.3
