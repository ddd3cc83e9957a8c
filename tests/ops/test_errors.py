"""Wrong arguments: the message names the op, the argument with its index, what came and what was wanted."""

import math

import pytest
import torch
from forms import OPS, PLAIN, project_arguments
from support import flat


def item(name, index, change):
    """Apply change to one tensor of a list."""

    def apply(given):
        given[name] = [change(t) if i == index else t for i, t in enumerate(given[name])]

    return apply


def put(**options):
    return lambda given: given.update(options)


# op, what is done to a right call, and what the message must hold: the argument, with its index where one applies, what
# came and what was wanted.
WRONG = {
    # lists
    "distill-no-taps": ("distill", put(taps=[], queries=[]), ["taps", "empty"]),
    "project-no-tokens": ("project", put(tokens=[], weights=[], biases=[], residuals=[]), ["tokens", "empty"]),
    "fuse-no-tokens": ("fuse", put(tokens=[], weights=[], biases=[]), ["tokens", "empty"]),
    "inject-no-features": ("inject", put(features=[], keys=[], values=[]), ["features", "empty"]),
    "orthogonality-no-tokens": ("orthogonality", put(tokens=[]), ["tokens", "empty"]),
    "distill-bare-taps": ("distill", put(taps=torch.ones(2, 4, 24)), ["taps", "list", "(2, 4, 24)"]),
    "distill-bare-queries": ("distill", put(queries=torch.ones(2, 3, 24)), ["queries", "list"]),
    "distill-bare-weight": ("distill", put(weight=torch.ones(24)), ["weight", "list"]),
    "distill-bare-mask": ("distill", put(key_mask=torch.ones(2, 33, dtype=torch.bool)), ["key_mask", "list"]),
    "project-bare-tokens": ("project", put(tokens=torch.ones(2, 4, 24)), ["tokens", "list"]),
    "project-bare-weights": ("project", put(weights=torch.ones(2, 24, 6)), ["weights", "list"]),
    "project-bare-biases": ("project", put(biases=torch.ones(2, 6)), ["biases", "list"]),
    "project-bare-residuals": ("project", put(residuals=torch.ones(2, 4, 6)), ["residuals", "list"]),
    "fuse-bare-tokens": ("fuse", put(tokens=torch.ones(3, 2, 4, 7)), ["tokens", "list"]),
    "inject-bare-features": ("inject", put(features=torch.ones(2, 4, 24)), ["features", "list"]),
    "inject-bare-keys": ("inject", put(keys=torch.ones(2, 4, 24)), ["keys", "list"]),
    "orthogonality-bare-3d": ("orthogonality", put(tokens=torch.ones(2, 4, 24)), ["tokens", "(2, 4, 24)"]),
    "distill-none-among-taps": ("distill", item("taps", 1, lambda t: None), ["taps[1]", "NoneType"]),
    "distill-number-for-list": ("distill", put(taps=3), ["taps", "int", "list"]),
    "distill-fewer-queries": ("distill", lambda g: g["queries"].pop(), ["queries", "1", "2"]),
    "distill-fewer-weights": ("distill", lambda g: g["weight"].pop(), ["weight", "1", "2"]),
    "distill-fewer-masks": ("distill", put(key_mask=[torch.ones(2, 33, dtype=torch.bool)]), ["key_mask", "1", "2"]),
    "project-fewer-weights": ("project", lambda g: g["weights"].pop(), ["weights", "1", "2"]),
    "project-fewer-biases": ("project", lambda g: g["biases"].pop(), ["biases", "1", "2"]),
    "project-fewer-residuals": ("project", lambda g: g["residuals"].pop(), ["residuals", "1", "2"]),
    "fuse-fewer-weights": ("fuse", lambda g: g["weights"].pop(), ["weights", "2", "3"]),
    "inject-fewer-values": ("inject", lambda g: g["values"].pop(), ["values", "1", "2"]),
    # empty tensors
    "distill-no-tokens": ("distill", item("taps", 1, lambda t: t[:, :0]), ["taps[1]", "(3, 0, 10)"]),
    "distill-no-channels": ("distill", item("taps", 1, lambda t: t[..., :0]), ["taps[1]", "(3, 17, 0)"]),
    "distill-no-rows": ("distill", item("queries", 0, lambda t: t[:0]), ["queries[0]", "(0, 24)"]),
    "project-no-rows": ("project", item("tokens", 1, lambda t: t[:0]), ["tokens[1]", "(0, 10)"]),
    "fuse-no-rows": ("fuse", item("tokens", 2, lambda t: t[:, :0]), ["tokens[2]", "(2, 0, 7)"]),
    "inject-no-tokens": ("inject", item("features", 1, lambda t: t[:, :0]), ["features[1]", "(2, 0, 10)"]),
    "inject-no-keys": ("inject", item("keys", 0, lambda t: t[:, :0]), ["keys[0]", "(2, 0, 24)"]),
    "orthogonality-no-rows": ("orthogonality", item("tokens", 1, lambda t: t[:, :0]), ["tokens[1]", "(2, 0, 10)"]),
    "orthogonality-no-samples": (
        "orthogonality",
        put(tokens=[torch.ones(0, 4, 24), torch.ones(0, 4, 10)]),
        ["tokens[0]", "(0, 4, 24)"],
    ),
    # shapes
    "distill-flat-tap": ("distill", item("taps", 1, lambda t: t[0]), ["taps[1]", "(17, 10)", "3"]),
    "distill-picture-tap": ("distill", item("taps", 0, lambda t: t[:, None]), ["taps[0]", "(2, 1, 33, 24)", "3"]),
    "distill-query-width": ("distill", item("queries", 1, lambda t: t[:, :9]), ["queries[1]", "(3, 9)", "10"]),
    "distill-query-batch": (
        "distill",
        item("queries", 1, lambda t: t.expand(2, 3, 10)),
        ["queries[1]", "(2, 3, 10)", "(3, 3, 10)"],
    ),
    "distill-weight-width": ("distill", item("weight", 1, lambda t: t[:9]), ["weight[1]", "(9,)", "10"]),
    "distill-bias-width": ("distill", item("bias", 1, lambda t: t[:9]), ["bias[1]", "(9,)", "10"]),
    "distill-mask-shape": (
        "distill",
        put(key_mask=[torch.ones(2, 33, dtype=torch.bool), torch.ones(3, 16, dtype=torch.bool)]),
        ["key_mask[1]", "(3, 16)", "(3, 17)"],
    ),
    "project-weight-width": ("project", item("weights", 1, lambda t: t[:9]), ["weights[1]", "(9, 6)", "10"]),
    "project-bias-width": ("project", item("biases", 1, lambda t: t[:5]), ["biases[1]", "(5,)", "6"]),
    "project-residual": ("project", item("residuals", 1, lambda t: t[:3]), ["residuals[1]", "(3, 6)", "(4, 6)"]),
    "project-larger-residual": (
        "project",
        item("residuals", 1, lambda t: t.expand(2, 4, 6)),  # would broadcast the output instead
        ["residuals[1]", "(2, 4, 6)", "(4, 6)"],
    ),
    "project-stack-rows": (
        "project",
        lambda g: g.update(project_arguments(rows=(4, 5), stack=True)),
        ["stack", "tokens[1]", "(5, 6)", "(4, 6)"],
    ),
    "project-stack-widths": (
        "project",
        lambda g: g.update(project_arguments(outs=(6, 7), stack=True)),
        ["stack", "1]", "(4, 7)", "(4, 6)"],
    ),
    "fuse-rows": ("fuse", item("tokens", 2, lambda t: t[:, :3]), ["tokens[2]", "(2, 3, 7)", "(2, 4"]),
    "fuse-batch": ("fuse", item("tokens", 2, lambda t: t[:1]), ["tokens[2]", "(1, 4, 7)", "(2, 4"]),
    "fuse-flat-tokens": ("fuse", item("tokens", 2, lambda t: t[0]), ["tokens[2]", "(4, 7)", "3"]),
    "fuse-weight-width": ("fuse", item("weights", 1, lambda t: t[:, :5]), ["weights[1]", "(10, 5)", "(10, 6)"]),
    "fuse-gate-size": ("fuse", put(gate=torch.ones(5).double()), ["gate", "(5,)", "3", "6"]),
    "fuse-gate-matrix": ("fuse", put(gate=torch.ones(3, 6).double()), ["gate", "(3, 6)", "1"]),
    "fuse-gate-ambiguous": (
        "fuse",
        lambda g: g.update(weights=[w[:, :3] for w in g["weights"]], biases=[b[:3] for b in g["biases"]]),
        ["gate", "gate_kind", "3"],
    ),
    "fuse-gate-kind-wrong": ("fuse", put(gate_kind="token"), ["gate", "token", "(3,)", "(6,)"]),
    "inject-key-width": ("inject", item("keys", 1, lambda t: t[..., :9]), ["keys[1]", "(2, 3, 9)", "(2, 3, 10)"]),
    "inject-value-width": ("inject", item("values", 1, lambda t: t[..., :9]), ["values[1]", "(2, 3, 9)", "(2, 3, 10)"]),
    "inject-value-rows": ("inject", item("values", 1, lambda t: t[:, :2]), ["values[1]", "(2, 2, 10)", "(2, 3, 10)"]),
    "inject-key-batch": ("inject", item("keys", 1, lambda t: t[:1]), ["keys[1]", "(1, 3, 10)", "(2, 3, 10)"]),
    "orthogonality-rows": (
        "orthogonality",
        item("tokens", 1, lambda t: t[:, :3]),
        ["tokens[1]", "(2, 3, 10)", "(2, 4"],
    ),
    # dtypes
    "distill-integer-taps": ("distill", put(taps=[torch.ones(2, 33, 24).long()] * 2), ["taps[0]", "int64", "float32"]),
    "distill-mixed-taps": ("distill", item("taps", 1, lambda t: t.float()), ["taps[1]", "float32", "float64"]),
    "distill-mixed-queries": ("distill", item("queries", 1, lambda t: t.half()), ["queries[1]", "float16", "float64"]),
    "distill-complex-taps": ("distill", item("taps", 0, lambda t: t + 0j), ["taps[0]", "complex128", "float32"]),
    "distill-byte-mask": (
        "distill",
        put(key_mask=[torch.ones(2, 33, dtype=torch.bool), torch.ones(3, 17, dtype=torch.uint8)]),
        ["key_mask[1]", "uint8", "bool"],
    ),
    "distill-float-mask": (
        "distill",
        put(key_mask=[torch.zeros(2, 33), torch.zeros(3, 17)]),
        ["key_mask[0]", "float32", "bool"],
    ),
    "project-integer-tokens": ("project", item("tokens", 0, lambda t: t.int()), ["tokens[0]", "int32", "float32"]),
    "project-mixed-weights": ("project", item("weights", 1, lambda t: t.float()), ["weights[1]", "float32", "float64"]),
    "fuse-integer-tokens": ("fuse", item("tokens", 0, lambda t: t.int()), ["tokens[0]", "int32", "float32"]),
    "fuse-integer-gate": ("fuse", put(gate=torch.ones(3).long()), ["gate", "int64", "float32"]),
    "fuse-listed-gate": ("fuse", put(gate=[0.1, 0.2, 0.3]), ["gate", "list", "tensor"]),
    "inject-integer-features": ("inject", item("features", 0, lambda t: t.int()), ["features[0]", "int32", "float32"]),
    "inject-mixed-keys": ("inject", item("keys", 1, lambda t: t.float()), ["keys[1]", "float32", "float64"]),
    "orthogonality-integer-tokens": (
        "orthogonality",
        item("tokens", 0, lambda t: t.int()),
        ["tokens[0]", "int32", "float32"],
    ),
    "orthogonality-mixed": (
        "orthogonality",
        item("tokens", 1, lambda t: t.half()),
        ["tokens[1]", "float16", "float64"],
    ),
    # devices
    "distill-tap-device": ("distill", item("taps", 1, lambda t: t.to("meta")), ["taps[1]", "meta", "cpu"]),
    "distill-query-device": ("distill", item("queries", 1, lambda t: t.to("meta")), ["queries[1]", "meta", "cpu"]),
    "distill-bias-device": ("distill", item("bias", 1, lambda t: t.to("meta")), ["bias[1]", "meta", "cpu"]),
    "distill-mask-device": (
        "distill",
        put(key_mask=[torch.ones(2, 33, dtype=torch.bool), torch.ones(3, 17, dtype=torch.bool, device="meta")]),
        ["key_mask[1]", "meta", "cpu"],
    ),
    "project-weight-device": ("project", item("weights", 0, lambda t: t.to("meta")), ["weights[0]", "meta", "cpu"]),
    "project-residual-device": (
        "project",
        item("residuals", 1, lambda t: t.to("meta")),
        ["residuals[1]", "meta", "cpu"],
    ),
    "fuse-gate-device": ("fuse", put(gate=torch.ones(3, device="meta")), ["gate", "meta", "cpu"]),
    "inject-value-device": ("inject", item("values", 1, lambda t: t.to("meta")), ["values[1]", "meta", "cpu"]),
    "orthogonality-device": ("orthogonality", item("tokens", 1, lambda t: t.to("meta")), ["tokens[1]", "meta", "cpu"]),
    # settings
    "distill-norm": ("distill", put(norm="batch"), ["norm", "batch", "layer", "rms", "none"]),
    "distill-norm-none": ("distill", put(norm=None), ["norm", "None", "layer"]),
    "project-norm": ("project", put(norm="batch"), ["norm", "batch", "layer", "rms", "none"]),
    "fuse-norm": ("fuse", put(norm="batch"), ["norm", "batch", "layer", "rms", "none"]),
    "inject-norm": ("inject", put(norm="batch"), ["norm", "batch", "layer", "rms", "none"]),
    "project-activation": ("project", put(activation="silu"), ["activation", "silu", "gelu", "relu"]),
    "fuse-gate-kind": ("fuse", put(gate_kind="tokens"), ["gate_kind", "tokens", "layer", "token"]),
    "distill-scale-word": ("distill", put(scale="1"), ["scale", "str", "number"]),
    "distill-scale-nan": ("distill", put(scale=math.nan), ["scale", "nan"]),
    "inject-scale-list": ("inject", put(scale=[1.0]), ["scale", "list", "number"]),
    **{
        f"{op}-eps-{eps}": (op, put(eps=eps), ["eps", str(eps)])
        for op in OPS[:4]
        for eps in (math.nan, -1e-6, math.inf)
    },
    **{f"{op}-eps-none": (op, put(eps=None), ["eps", "NoneType"]) for op in OPS[:4]},
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(ops, case):
    op, spoil, told = WRONG[case]
    given = {name: list(value) if isinstance(value, list) else value for name, value in PLAIN[op].items()}
    flat(getattr(ops, op)(**given))
    spoil(given)
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(ops, op)(**given)
    missing = [words for words in (op, *told) if words not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
