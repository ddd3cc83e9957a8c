"""Races on a CPU: who takes part is right, turns are taken, ratios are of the same round, and what is counted."""

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cases, contenders, cpu, measure, memory, plain, race, timing, volume
from benchmarks.correctness import Truth, WrongError
from benchmarks.layouts import random
from fastav import MettleConfig, reference


def attend_case():
    return cases.attend(cases.SMALL, 2, rows=5)


@pytest.mark.parametrize("rank", [None, 7])
@pytest.mark.parametrize("name", ["ours", "literal", "literal sdpa"])
def test_projecting_contenders_compute_attention_with_projections(name, rank):
    case = cases.attend(cases.SMALL, 2, rows=5, rank=rank)
    given = case.tensors(random("cpu"))
    found = contenders.CONTENDERS["attend"][name]("attend")(**given, **case.settings)
    for i, out in enumerate(found):
        x, q, w_k, w_v = (given[key][i].double() for key in ("taps", "queries", "keys", "values"))
        x_hat = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        keys, values = x_hat @ w_k.T, x_hat @ w_v
        expected = torch.stack(
            [(q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v for k, v in zip(keys, values, strict=True)]
        )
        assert out.shape == (2, 5, rank or x.shape[-1])
        assert (out - expected).abs().max() < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["ours", "literal", "literal sdpa"])
def test_projecting_contenders_are_right_with_their_gradients(name, dtype):
    truth = Truth.of(dataclasses.replace(attend_case(), taps=dtype), "cpu")
    assert {label.split("[")[0] for label in truth.allowed} >= {"queries", "keys", "values"}
    assert truth.check(contenders.CONTENDERS["attend"][name]("attend"), slack=measure.SLACK) > 0


def test_a_projection_left_out_is_wrong():
    def wrong(taps, queries, keys, values, **settings):
        return plain.attend(taps, queries, keys, [v * 1.01 for v in values], **settings)

    with pytest.raises(WrongError, match="is off by"):
        Truth.of(attend_case(), "cpu").check(wrong)


@pytest.mark.parametrize("affine", [True, False])
def test_the_folded_form_computes_what_the_reference_does(affine):
    case = cases.distill(cases.SMALL, 2, rows=5, affine=affine)
    given = case.tensors(random("cpu"))
    # Means far from zero, which a difference of large numbers would not survive if it were carelessly folded.
    given["taps"] = [x + 3 for x in given["taps"]]
    found = contenders.folded(**given, **case.settings)
    for a, b in zip(found, reference.distill(**given, **case.settings), strict=True):
        assert (a - b).abs().max() < 2e-5


def test_vector_paths_are_forced_or_refused():
    with pytest.raises(contenders.UnavailableError), contenders.forced("mmx"):
        pass
    fastest = contenders.vector_path()
    if not fastest:
        pytest.skip("the native kernels are not usable here")
    with contenders.forced("portable"):
        assert contenders.vector_path() == "portable"
    assert contenders.vector_path() == fastest


def test_who_races():
    names = set(race.contenders(cpu._workload(cases.distill(cases.SMALL, 2))))
    assert {"ours", "eager", "plain", "sdpa", "stacked", "compile", "folded", "folded compile"} <= names
    assert not names & {"xformers", "folded in float32"}
    narrow = dataclasses.replace(cases.distill(cases.SMALL, 2), taps=torch.bfloat16)
    assert {"folded in float32", "folded compile in float32"} <= set(race.contenders(cpu._workload(narrow)))
    if contenders.vector_path() == "avx512":
        assert {"ours, avx2", "ours, portable"} <= names


def test_who_is_wrong_does_not_race(monkeypatch):
    monkeypatch.setitem(contenders.CONTENDERS["distill"], "plain", lambda op: lambda **_: [torch.zeros(1)] * 4)
    made, absent = race.prepared(cpu._workload(cases.distill(cases.SMALL, 2)), ["plain", "eager"])
    assert set(made) == {"eager"}
    assert [a.contender for a in absent] == ["plain"]
    assert absent[0].reason


def test_contenders_take_turns_and_ratios_are_of_the_same_round(monkeypatch):
    called, now = [], [0.0]

    def runner(name, seconds):
        def run():
            called.append(name)
            now[0] += seconds * (10 if called.count(name) == 4 else 1)  # both are slow in one round

        return run

    monkeypatch.setattr(race.time, "perf_counter", lambda: now[0])
    line = [race.Entrant("ours", [runner("a", 2.0)]), race.Entrant("peer", [runner("b", 3.0)], operations=7)]
    ours, peer = race.race("it", "forward", line, 4, warm=1)
    assert called == ["a", "b"] + ["a", "b"] * 4
    assert ours.times == (2.0, 2.0, 20.0, 2.0)
    ratio = peer.ratio(ours)
    assert (ratio.low, ratio.median, ratio.high) == (1.5, 1.5, 1.5)
    assert (peer.operations, peer.race, peer.threads) == (7, "it", torch.get_num_threads())


def test_a_race_ends_when_its_time_is_up(monkeypatch):
    now = [0.0]

    def run():
        now[0] += 1 + race.BUDGET_S

    monkeypatch.setattr(race.time, "perf_counter", lambda: now[0])
    (lap,) = race.race("it", "forward", [race.Entrant("ours", [run])], 100)
    assert len(lap.times) == race.FEWEST


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with race.using_threads(1):
        assert torch.get_num_threads() == 1
        assert torch._inductor.config.cpp.threads == 1
    assert torch.get_num_threads() == before


def test_counts_by_hand():
    case = cases.distill([(3, 4), (6, 4)], 2, rows=5)
    tap = 2 * (3 + 6) * 4  # elements
    assert volume.read(case, "forward") == 4 * tap
    assert volume.read(case, "forward + backward") == 8 * tap
    assert volume.operations(case, "forward") == 2 * 2 * 5 * tap  # two products, an addition and a multiplication each
    assert volume.operations(case, "forward + backward") == 6 * 2 * 5 * tap
    literal = cases.attend([(3, 4), (6, 4)], 2, rows=5, rank=2)
    rows = 2 * (3 + 6)
    projections, attention = 2 * (2 * rows * 4 * 2), 2 * (2 * rows * 5 * 2)
    assert volume.operations(literal, "forward") == projections + attention
    # Backward: one product for each projection's weights, as taps want no gradient; two for each of attention's two.
    assert volume.operations(literal, "forward + backward") == 2 * projections + 3 * attention
    assert volume.operations(cases.orthogonality([4], 2), "forward") is None


def test_clones_outlast_the_last_level_cache(monkeypatch):
    monkeypatch.setattr(timing, "last_level_cache", lambda: 1000)
    device = torch.device("cpu")
    assert timing.copies(500, device) * 500 > 3000
    assert timing.copies(5000, device) == 2
    assert timing.copies(1, device) == timing.MOST_CLONES


def test_bandwidths_are_of_pages_that_were_written():
    assert timing.last_level_cache() >= 1 << 18
    data = timing._streamed(torch.device("cpu"))
    assert data.nbytes > 4 * timing.last_level_cache()
    assert data.min() == 1


def test_the_step_of_the_demo_is_the_demos():
    pytest.importorskip("timm")
    pytest.importorskip("onnx")
    pytest.importorskip("tqdm")
    from examples.stamps.exercises import BATCH, METTLE_TAPS
    from examples.stamps.scenes import SEGMENTS
    from examples.stamps.splits import CLIP_SIZE
    from examples.stamps.weights import random_vit, random_whisper_encoder
    from fastav import FrozenBackbone
    from fastav.backbones import TapStore

    visual = FrozenBackbone(random_vit(CLIP_SIZE), METTLE_TAPS)
    audio = FrozenBackbone(random_whisper_encoder(SEGMENTS))
    taps = visual(torch.zeros(1, 3, CLIP_SIZE, CLIP_SIZE))
    taps += [tap.unflatten(1, (SEGMENTS, -1))[:, 0] for tap in audio(torch.zeros(1, 80, 100 * SEGMENTS))]
    assert tuple(tuple(tap.shape[1:]) for tap in taps) == cases.STAMPS
    side, config = cases.STAMPS_SIDE, MettleConfig()
    assert len(visual.widths) == len(side.visual)
    assert side.segments == BATCH * SEGMENTS
    assert (side.tokens, side.heads, side.rank, side.width) == (
        config.num_tokens, config.heads, config.rank, config.width)  # fmt: skip
    case = next(h.workload.case for h in cpu.heats() if h.workload.case.name == "distill stamps fp16")
    assert case.lists["queries"].shapes[0] == (12, 384)  # 4 of preservation, 2 heads' 4 of adaptation
    assert case.lists["taps"].shapes[-1] == (160, 50, 384)
    assert inspect.signature(TapStore.create).parameters["dtype"].default == case.taps


def test_the_races_are_of_the_step():
    by_name = {heat.workload.case.name: heat for heat in cpu.heats()}
    assert len(by_name) == len(list(cpu.heats()))
    step = by_name["distill AVE fp32"].workload.case
    assert step.first_bytes == 211_845_120  # docs/ops/distill.md
    assert step.lists["queries"].shapes[0] == (16, 192)
    assert by_name["distill AVE bf16"].workload.case.first_bytes == 105_922_560
    assert by_name["attend D x D fp32"].beside is by_name["distill AVE fp32"].workload or (
        by_name["attend D x D fp32"].beside.case == step
    )
    assert {heat.workload.case.op for heat in by_name.values()} == {
        "distill", "attend", "project", "fuse", "inject", "orthogonality"}  # fmt: skip
    assert by_name["attend D x 16 fp32"].workload.case.lists["values"].shapes[0] == (192, 16)


def test_growth_is_bytes_a_token():
    small, large = cpu.growing()
    assert memory.tokens(small) == 10 * (32768 + 8192)
    assert memory.tokens(large) == 2 * memory.tokens(small)
    peaks = [
        memory.Peak(small.name, "ours", 5_000_000), memory.Peak(large.name, "ours", 5_000_000),
        memory.Peak(small.name, "plain", 1_000_000), memory.Peak(large.name, "plain", 1_000_000 + 4_096_000),
        memory.Peak(small.name, "eager", 1), memory.Peak(large.name, "eager", None, "killed"),
    ]  # fmt: skip
    assert memory.growth(peaks) == {"ours": 0.0, "plain": 10.0}
    assert memory.PER_TOKEN < memory.limit() < 2 * memory.PER_TOKEN  # two numbers a token, such as statistics, show


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_a_peak_is_what_a_call_takes_and_no_more():
    # In a process of its own, as always: this one's memory has been used before.
    code = """
from benchmarks import cases, cpu, memory, workloads
case = cases.distill([(16384, 96)], 8, rows=4)
print(case.first_bytes, memory.peak(workloads.Workload(case, case, cpu.CPU, 1), "plain"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=memory.ROOT, env=os.environ | memory.MALLOC, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tap, peak = map(int, done.stdout.split())
    assert 0.9 * tap < peak < 5 * tap  # the normalised tap is kept; then come its gradient and what is between


def test_a_process_that_fails_says_why():
    found = memory.measured("no such case", "ours", threads=1, smoke=True)
    assert found.bytes is None
    assert "no such case" in found.reason


def test_compiled_code_may_lose_more_only_in_float32():
    assert measure.slack("ours", torch.float32) == 1
    assert measure.slack("ours, portable", torch.float32) == measure.LONGER_CHAINS
    assert measure.slack("compile", torch.float32) == measure.LOOSE_EXP
    assert measure.slack("compile in float32", torch.bfloat16) == measure.LOOSE_EXP
    assert measure.slack("folded compile", torch.bfloat16) == measure.slack("sdpa", torch.float32) == measure.SLACK
