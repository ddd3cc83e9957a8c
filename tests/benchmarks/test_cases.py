"""The cases are what the Mettle adapter calls, and lie in memory as it hands them over."""

import pytest
import torch

from benchmarks import cases, layouts
from fastav import MettleConfig, reference
from fastav.adapters import distillation


class Spy:
    """Answers as the reference does, into buffers laid out as the kernels' results are, and notes what it was asked."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, op):
        def call(*lists, **given):
            self.calls.append((op, lists, given))
            outputs = getattr(reference, op)(*lists, **given)
            if isinstance(outputs, torch.Tensor):
                return outputs
            made = layouts.Entries(tuple(tuple(o.shape) for o in outputs), "results")
            return made.tensors(outputs[0].dtype, lambda n, dtype, _: torch.empty(n, dtype=dtype, device="meta"))

        return call


def described(tensors):
    """Shapes, strides, and whether all share one storage."""
    shared = len({t.untyped_storage()._cdata for t in tensors}) == 1
    return [tuple(t.shape) for t in tensors], [t.stride() for t in tensors], shared and len(tensors) > 1


@pytest.mark.parametrize("name", ["AVE", "ViT-AST"])
def test_mettles_calls_are_the_adapters(name, monkeypatch):
    side, spy = cases.SIDES[name], Spy()
    monkeypatch.setattr(distillation, "ops", spy)
    config = MettleConfig(num_tokens=side.tokens, heads=side.heads, rank=side.rank, width=side.width)
    widths = [d for _, d in side.shapes]
    lcd = distillation.LayerCentricDistillation(widths, list(range(len(widths))), config).eval().to("meta")
    lcd([torch.empty(side.segments, n, d, device="meta") for n, d in side.shapes])
    expected = [case for case in cases.mettle(side) if case.op != "fuse"]
    assert [op for op, _, _ in spy.calls] == [case.op for case in expected]
    for (op, lists, given), case in zip(spy.calls, expected, strict=True):
        made = case.tensors(lambda n, dtype, _: torch.empty(n, dtype=dtype, device="meta"))
        names = iter(made)
        asked = {next(names): tensors for tensors in lists} | {k: v for k, v in given.items() if k in made}
        for label, tensors in made.items():
            assert (tensors is None) == (asked.get(label) is None), (case.name, label)
            if tensors is not None:
                assert described(asked[label]) == described(tensors), (case.name, label)
        for setting, value in given.items():
            assert setting in made or case.settings[setting] == value, (case.name, setting)
        assert op == case.op


def test_sizes_are_the_designs():
    elements = sum(n * d for n, d in cases.AVE)
    assert (elements, sum(d for _, d in cases.AVE), len(cases.AVE)) == (5_296_128, 22_464, 36)
    distill = next(case for case in cases.mettle(cases.SIDES["AVE"]) if case.op == "distill")
    assert distill.first_bytes == 10 * elements * 4
    assert distill.lists["queries"].shapes[0] == (16, 192)


def test_layouts():
    def tensors(layout, shapes):
        return layouts.Entries(shapes, layout).tensors(torch.float32, layouts.empty)

    shapes = ((2, 3, 5), (2, 4, 7))
    assert [t.storage_offset() for t in tensors("flat", shapes)] == [0, 30]
    assert [t.storage_offset() for t in tensors("results", shapes)] == [0, 32]
    assert [t.stride() for t in tensors("columns", shapes)] == [(43, 5, 1), (43, 7, 1)]
    assert [(t.storage_offset(), t.stride()) for t in tensors("prefix", shapes)] == [(5, (20, 5, 1)), (7, (35, 7, 1))]
    rows = layouts.Entries(shapes, "last rows", cut=2).tensors(torch.float32, layouts.empty)
    assert [(t.storage_offset(), t.stride()) for t in rows] == [(10, (25, 5, 1)), (64 + 14, (42, 7, 1))]
    assert len({t.data_ptr() for t in tensors("own", ((3,), (3,)))}) == 2


def test_every_op_form_and_gradient_is_compiled():
    compiled = list(cases.compiled_cases())
    assert {case.op for case in compiled} == {"distill", "project", "fuse", "inject", "orthogonality"}
    assert {case.settings["gate_kind"] for case in compiled if case.op == "fuse"} == {None, "layer", "token"}
    distills = [case for case in compiled if case.op == "distill"]
    assert {"taps" in case.wanted for case in distills} == {True, False}
    assert {case.lists["key_mask"] is None for case in distills} == {True, False}
    assert {len(case.lists["queries"].shapes[0]) for case in distills} == {2, 3}
    pairs = {(case.taps, case.learned) for case in distills}
    assert pairs >= {(a, b) for a in (torch.bfloat16, torch.float32) for b in (torch.bfloat16, torch.float32)}
    assert torch.float16 in {a for a, _ in pairs}
    assert any(case.op == "inject" and case.lists["keys"].shapes[0][1] == 16 for case in compiled)
