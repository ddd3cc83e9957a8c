"""A cost as a whole, and the tables and pictures of given ones."""

import json
from dataclasses import replace

import pytest
import torch

from fastav.cost import Cost, Peak, Spread, build_step, check, frozen_forward, measure_cost, random_inputs
from fastav.cost.profile import Absence, profile
from fastav.cost.report import cost_table, draw_costs, notes, parts_table
from fastav.ops._backends import using

PARTS = {"backbones": 0.07, "side branch": 0.02, "head": 0.001, "backward": 0.008, "update": 0.001}
GIVEN = Cost(
    method="mettle",
    clips=2,
    segments=10,
    reached=0,
    blocks=36,
    trainable=900,
    head=100,
    total=10_000,
    step=Spread(0.1, 0.09, 0.12, 5),
    forward=Spread(0.08, 0.08, 0.08, 5),
    frozen=Spread(0.05, 0.05, 0.05, 5),
    over_frozen=Spread(2.0, 1.9, 2.1, 5),
    parts=PARTS,
    saved={"taps": 3_000_000, "backbones": 0, "method": 1_500_000, "head": 500_000},
    peak=Peak(12_300_000),
    forward_peak=Peak(7_000_000),
)


def cells(text, *start):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return next(row for row in rows if row[: len(start)] == list(start))


def test_measured_costs_are_consistent_and_go_to_json_and_back(pair):
    pytest.importorskip("timm")
    inputs = random_inputs(*pair, clips=2, segments=3)
    step = build_step("mettle", *pair, inputs)
    with using("reference"):
        cost = measure_cost("mettle", step, frozen_forward(*pair, inputs), reached=check(step), rounds=3)
    assert cost.ops == "reference"
    assert notes([cost])[0] == "fastav's own ops by reference."
    assert (cost.clips, cost.segments, cost.reached, cost.blocks) == (2, 3, 0, 5)
    head = sum(p.numel() for p in step.task.parameters())
    assert (cost.trainable + cost.head, cost.head, cost.total) == (step.trainable, head, step.total)
    assert cost.saved == step.saved()
    assert cost.step.rounds == cost.over_frozen.rounds == 3
    assert cost.step.low <= cost.step.median <= cost.step.high
    assert cost.clips_per_second == 2 / cost.step.median
    assert cost.share == step.trainable / step.total
    assert (cost.joules is None) == bool(cost.no_joules)
    assert Cost.from_dict(json.loads(json.dumps(cost.as_dict()))) == cost


def test_a_single_round_is_refused_before_anything_runs(pair):
    with pytest.raises(ValueError, match="rounds is 1, wanted at least 2"):
        measure_cost("mettle", None, None, reached={}, rounds=1)
    inputs = random_inputs(*pair, clips=1, segments=2)
    with pytest.raises(ValueError, match="rounds is 1, wanted at least 2"):
        profile(["mettle"], *pair, inputs, rounds=1)


def test_frozen_forward_runs_both_backbones_on_all_segments(pair):
    inputs = random_inputs(*pair, clips=2, segments=3)
    seen, heard = frozen_forward(*pair, inputs)()
    assert [tap.shape for tap in (*seen, *heard)] == [(6, 5, 16), (6, 5, 16)]
    assert not seen[0].requires_grad


def test_tables_hold_what_they_were_given():
    other = replace(GIVEN, method="lavish", reached=24, blocks=24, saved={**GIVEN.saved, "backbones": 95_000_000})
    text = cost_table([GIVEN, other], markdown=True)
    assert cells(text, "method") == [
        "method", "clips", "blocks passed", "trainable", "head", "% of all", "saved MB", "peak MB", "forward peak MB",
        "step ms", "of frozen", "IQR", "forward ms", "clips/s",
    ]  # fmt: skip
    assert cells(text, "Mettle") == [
        "Mettle", "2", "0 of 36", "900", "100", "10.00", "5.0", "12.3", "7.0", "100", "2.00", "0.20", "80", "20.00",
    ]  # fmt: skip
    assert cells(text, "LAVISH")[6] == "100.0"
    parts = parts_table([GIVEN], markdown=True)
    assert cells(parts, "Mettle")[2:] == ["70.0", "20.0", "1.0", "8.0", "1.0", "3.0", "0.0", "1.5", "0.5"]


def test_columns_that_nobody_fills_are_left_out_and_others_are_not():
    on_gpu = replace(GIVEN, peak=Peak(12_300_000, 20_000_000), joules=3.25)
    head = cells(cost_table([GIVEN, on_gpu], markdown=True), "method")
    assert "reserved MB" in head
    assert "J/step" in head
    assert cells(cost_table([on_gpu], markdown=True), "Mettle")[-1] == "3.2"


def test_pictures_show_a_clips_share(tmp_path, monkeypatch):
    """Bars of two clips are halved, so that methods with other batches stand beside each other."""
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figures.Figure.savefig
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path: (drawn.append(self), save(self, path)))
    costs = [GIVEN, replace(GIVEN, method="molt", clips=1)]
    draw_costs(costs, tmp_path / "costs.png", "title", where="here", absent={"LAVISH": "it was tired"})
    assert drawn[0].get_suptitle() == "title\nhere"
    memory, time = drawn[0].axes
    assert [label.get_text() for label in memory.get_yticklabels()] == ["Mettle, 2 clips", "MoLT, 1 clip", "LAVISH"]
    assert [text.get_text() for text in memory.texts] == [
        "2.5, peak 6.15",
        "5, peak 12.3",
        "  not measured: it was tired",
    ]
    assert [text.get_text() for text in time.texts] == ["50", "100"]
    widths = [bar.get_width() for bar in memory.patches]
    assert widths[:2] == [1.5, 3.0]  # taps, in MB a clip
    assert sum(bar.get_width() for bar in time.patches[::2]) == pytest.approx(50.0)
    assert (tmp_path / "costs.png").stat().st_size > 10_000


def test_profiles_go_on_past_methods_that_do_not_fit(pair, tiny):
    for extra in ("timm", "greenlet", "peft"):
        pytest.importorskip(extra)
    inputs = random_inputs(*pair, clips=1, segments=2)
    seen = []
    found = list(
        profile(["frozen", "ladder", "molt"], *pair, inputs, rounds=2, then=lambda name, step: seen.append(name))
    )
    assert [type(one) for one in found] == [Cost, Cost, Cost]
    assert seen == ["frozen", "ladder", "molt"]
    hubert = tiny.hf("Hubert")
    eyes = pair[0]
    found = list(
        profile(["lavish", "frozen"], eyes, hubert, random_inputs(eyes, hubert, clips=1, segments=2), rounds=2)
    )
    assert found[0] == Absence("lavish", found[0].reason)
    assert "Lavish hears spectrograms" in found[0].reason
    assert isinstance(found[1], Cost)


def test_whole_clips_of_sound_are_profiled_with_all_their_segments(tiny):
    pytest.importorskip("greenlet")
    eyes, whisper = tiny.vit(embed_dim=16), tiny.hf("Whisper", "Model", d_model=16).encoder
    inputs = random_inputs(eyes, whisper, clips=2, segments=4, audio_layout="clip")
    assert inputs[1].shape == (2, 80, 200)
    found = list(profile(["mettle", "dg-sct"], eyes, whisper, inputs, audio_layout="clip", rounds=2))
    assert [one.method for one in found if isinstance(one, Cost)] == ["mettle", "dg-sct"]
    assert torch.is_grad_enabled()
