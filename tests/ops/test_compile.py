"""torch.compile(fullgraph=True) of every op: the same values and gradients as eager."""

import shutil

import pytest
import torch
from forms import FORMS, distill_arguments
from support import (
    Draw,
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


SHARED = {"distill": "queries", "project": "weights", "fuse": "weights", "inject": "keys", "orthogonality": "tokens"}


@pytest.mark.parametrize("op", SHARED)
def test_a_tensor_that_comes_twice_gets_both_gradients(ops, op):
    # torch.compile gives a repeated argument of an autograd.Function the gradient of one place alone.
    draw = Draw(6)
    shared = draw(2, 5, 24) if op in ("inject", "orthogonality") else draw(24, 6) if op != "distill" else draw(3, 24)
    both = [draw(2, 7, 24), draw(2, 7, 24)]
    rest = {
        "distill": {"taps": both},
        "project": {"tokens": both},
        "fuse": {"tokens": both},
        "inject": {"features": both, "values": [draw(2, 5, 24), draw(2, 5, 24)]},
        "orthogonality": {},
    }[op]

    def twice(tensor):
        return getattr(ops, op)(**rest, **{SHARED[op]: [tensor, tensor]})

    def gradient(function):
        leaf = shared.clone().requires_grad_()
        outputs = flat(function(leaf))
        return torch.autograd.grad(outputs, leaf, upstream_for(outputs, "contiguous", seed=7))[0]

    def apart(tensor):
        return getattr(ops, op)(**rest, **{SHARED[op]: [tensor * 1, tensor * 1]})

    torch._dynamo.reset()
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    expected = gradient(apart)
    for function in (twice, compiled):
        # Two float64 gradients and their sum, in another order at most.
        assert (gradient(function) - expected).abs().max() <= 1e-13 * expected.abs().max()
