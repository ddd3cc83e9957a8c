"""Tuning, with a timer that needs no GPU: what is tried, what is chosen, what is written."""

import json
import math

import pytest

pytest.importorskip("triton")

import torch

from benchmarks import tune
from fastav.kernels import launch

ENTRY = {
    "kernel": "distill_fwd_kernel", "chip": "sm_90", "bytes": [2], "sizes": {"BLOCK_N": 64, "BLOCK_D": 32},
    "warps": 4, "stages": 2, "why": "a guess",
}  # fmt: skip


def shape(entry):
    return (*entry["sizes"].values(), entry["warps"], entry["stages"])


def test_neighbours_differ_in_one_thing():
    found = [shape(entry) for entry in tune.neighbours(ENTRY)]
    assert found == [
        (64, 32, 4, 2), (32, 32, 4, 2), (128, 32, 4, 2), (64, 16, 4, 2), (64, 64, 4, 2),
        (64, 32, 2, 2), (64, 32, 8, 2), (64, 32, 4, 1), (64, 32, 4, 3),
    ]  # fmt: skip
    smallest = ENTRY | {"sizes": {"BLOCK_N": 16}, "warps": 1}
    assert [shape(entry)[:2] for entry in tune.neighbours(smallest)[1:3]] == [(32, 1), (16, 2)]


def test_the_fastest_is_found_over_two_steps_and_says_what_was_measured():
    # Fastest at 128 tokens and 8 warps, two steps from the entry; what has 1 stage is wrong.
    def timer(entry):
        tokens, _, warps, stages = shape(entry)
        return math.inf if stages == 1 else 1e-6 * (40 + abs(tokens - 128) / 16 + 3 * abs(warps - 8))

    best = tune.tuned(ENTRY, timer, "Some GPU", "forward and backward of distill AVE")
    assert shape(best)[0] == 128
    assert shape(best)[2] == 8
    # The first pass tries 9, the second 8 around the fastest of them, less those that were tried; two have one stage.
    assert best["why"] == "fastest of 14 on Some GPU: 40.0 us, next 44.0 us, forward and backward of distill AVE"
    assert {name: best[name] for name in ("kernel", "chip", "bytes")} == {
        name: ENTRY[name] for name in ("kernel", "chip", "bytes")
    }


def test_nothing_right_is_an_error():
    with pytest.raises(RuntimeError, match="distill_fwd_kernel: no candidate gives right results"):
        tune.tuned(ENTRY, lambda entry: math.inf, "Some GPU", "")


def test_the_table_keeps_its_form():
    kept = tune.TABLE.read_text()
    table = json.loads(kept)
    assert tune.lines(table) == kept
    assert tune.lines(table[::-1]) == kept  # sorted whatever comes


def test_launches_take_their_blocks_from_the_table_in_use():
    table = json.loads(tune.TABLE.read_text())
    before = launch.blocks("distill_fwd_kernel", "sm_90", 2)
    changed = [e | {"warps": 13} if (e["kernel"], e["chip"]) == ("distill_fwd_kernel", "sm_90") else e for e in table]
    with tune.using(changed):
        assert launch.blocks("distill_fwd_kernel", "sm_90", 2).warps == 13
    assert launch.blocks("distill_fwd_kernel", "sm_90", 2) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what it says without a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert tune.main([]) == 2
    assert "there is no CUDA or ROCm device here" in capsys.readouterr().err
