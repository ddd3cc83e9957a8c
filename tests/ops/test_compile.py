"""torch.compile(fullgraph=True) of every op: the same values and gradients as eager."""

import shutil

import pytest
import torch
from forms import FORMS, distill_arguments
from support import (
    call,
    flat,
    float_names,
    gradients,
    upstream_for,
)

every_form = pytest.mark.parametrize("form", FORMS)


def parity(function, arguments, wanted, **options):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, **options)
    upstream = upstream_for(flat(function(**arguments)), "contiguous", seed=2)
    eager_out, compiled_out = flat(function(**arguments)), flat(call(compiled, arguments, wanted)[0])
    for actual, expected in zip(compiled_out, eager_out, strict=True):
        # The very same kernels run on the same float64 numbers; only what torch itself compiles around them may round.
        assert (actual - expected).abs().max() <= 1e-14 * max(1.0, expected.abs().max())
    expected = gradients(function, arguments, wanted, upstream)
    for label, actual in gradients(compiled, arguments, wanted, upstream).items():
        assert (actual - expected[label]).abs().max() <= 1e-13 * max(1.0, expected[label].abs().max()), label
    return compiled


@every_form
def test_compiled_is_eager(ops, form):
    op, given = FORMS[form]
    parity(getattr(ops, op), given, float_names(given), backend="aot_eager")


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_with_frozen_taps_and_other_sizes(ops, dynamic):
    # dynamic=True makes inputs of the float settings too: checks that cannot be traced with those break the graph.
    given = distill_arguments(affine=True, scale=0.3)
    learned = {"queries", "weight", "bias"}
    compiled = parity(ops.distill, given, learned, backend="aot_eager", dynamic=dynamic)
    for times in (2, 3):
        longer = {**given, "taps": [tap.repeat(1, times, 1)[:, 1:] for tap in given["taps"]]}
        upstream = upstream_for(ops.distill(**longer), "contiguous", seed=4)
        expected = gradients(ops.distill, longer, learned, upstream)
        actual = gradients(compiled, longer, learned, upstream)
        assert all(torch.equal(actual[label], gradient) for label, gradient in expected.items())


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor compiles for the CPU with a C++ compiler; there is no g++"
)
def test_inductor_with_work_around_the_op(ops):
    # Inductor re-strides what it fuses: elementwise work on both sides, and a transposed use of the output.
    def layer(taps, queries):
        first, second = ops.distill([tap * 2 + 1 for tap in taps], [query.tanh() for query in queries])
        return [first.mT * 3, torch.cat([second, second.relu()], 1)]

    given = {name: value for name, value in distill_arguments().items() if name in ("taps", "queries")}
    parity(layer, given, {"taps", "queries"})
