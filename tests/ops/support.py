"""What the tests of all five ops share: drawing, laying out, calling, a differentiable restatement, tolerances.

`arguments` is always the keyword arguments of one call: lists of tensors, tensors, and plain options.
"""

import math
import os

import numpy as np
import oracles
import torch

# Float64. A score is a sum of at most 1536 products of size ~10, so it is off by at most 1536 * 1.1e-16 * 10 = 2e-12;
# softmax hands the absolute error of a score on as a relative one. Gradients add such terms over at most B * N = 3072
# tokens, whose errors do not all point one way: 1e-10. A wrong eps, variance or scale is off by 1e-7 and more.
VALUES64 = 1e-11
GRADIENTS64 = 1e-10


class Draw:
    """Seeded float64 normal numbers."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def mask(self, *shape):
        """A bool tensor, about a third of it False."""
        return torch.rand(*shape, generator=self.generator) > 0.33


def remake(arguments, function):
    """The same arguments with function(label, tensor) in place of every tensor; labels are those of error messages."""
    new = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            new[name] = function(name, value)
        elif isinstance(value, (list, tuple)):
            new[name] = [function(f"{name}[{i}]", item) for i, item in enumerate(value)]
        else:
            new[name] = value
    return new


def tensors(arguments):
    """Every tensor of the arguments by label."""
    found = {}

    def note(label, tensor):
        found[label] = tensor
        return tensor

    remake(arguments, note)
    return found


def flat(outputs):
    """The outputs of any op as a list."""
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def argument_of(label):
    """'taps[1]' -> 'taps'."""
    return label.split("[")[0]


def cast(arguments, dtype, only=None):
    """Float tensors to dtype, or only those of the named arguments; strides are kept."""
    return remake(
        arguments,
        lambda label, t: t.to(dtype) if t.is_floating_point() and (only is None or argument_of(label) in only) else t,
    )


def oracle(op, arguments):
    """The NumPy answer as a list of float64 tensors."""
    plain = remake(
        arguments, lambda _, t: t.detach().to(torch.float64).numpy() if t.is_floating_point() else t.detach().numpy()
    )
    answer = getattr(oracles, op)(**plain)
    if isinstance(answer, list):
        return [torch.from_numpy(a) for a in answer]
    return [torch.from_numpy(np.asarray(answer))]


def call(function, arguments, wanted=()):
    """Outputs and the leaves that were given requires_grad: all floats of the arguments named in wanted."""
    asked = {}

    def leaf(label, tensor):
        tensor = tensor.detach()
        if argument_of(label) in wanted and tensor.is_floating_point():
            asked[label] = tensor.requires_grad_()
        return tensor

    outputs = function(**remake(arguments, leaf))
    return outputs, asked


def gradients(function, arguments, wanted, upstream):
    """d sum(outputs * upstream) / d every asked tensor, by label."""
    outputs, asked = call(function, arguments, wanted)
    found = torch.autograd.grad(flat(outputs), list(asked.values()), upstream)
    return dict(zip(asked, found, strict=True))


def float_names(arguments):
    """Names of the arguments that hold floats: whatever can be asked for a gradient."""
    return {argument_of(label) for label, t in tensors(arguments).items() if t.is_floating_point()}


# ---- layouts ---------------------------------------------------------------------------------------------------------

LAYOUTS = ("sliced", "strided", "transposed", "swapped", "expanded")


def laid_out(tensor, layout):
    """The tensor in other strides, with NaN in the memory around it: what reads past its bounds shows.

    All keep the values but "expanded", which repeats the first item along the first axis with stride 0.
    """
    if layout == "expanded":
        return tensor[:1].expand_as(tensor)
    if layout == "transposed":
        return tensor.permute(*reversed(range(tensor.ndim))).contiguous().permute(*reversed(range(tensor.ndim)))
    if layout == "swapped":
        return tensor.transpose(0, -2).contiguous().transpose(0, -2) if tensor.ndim > 1 else tensor
    if layout == "sliced":  # prefix and suffix rows cut off, as a ViT's class token is; the last stride stays 1
        outer = torch.full([n + 3 for n in tensor.shape], math.nan, dtype=tensor.dtype)
        view = outer[tuple(slice(1, n + 1) for n in tensor.shape)]
    elif layout == "strided":
        outer = torch.full([2 * n for n in tensor.shape], math.nan, dtype=tensor.dtype)
        view = outer[tuple(slice(1, None, 2) for _ in tensor.shape)]
    else:
        raise AssertionError(layout)
    view.copy_(tensor)
    return view


def upstream_for(outputs, layout, seed):
    """Gradients of a loss for these outputs (float64 draws in the outputs' dtypes) in the given layout."""
    draw = Draw(seed)
    given = []
    for out in outputs:
        if layout == "expanded" or out.ndim == 0:  # what .sum() hands down: one number, all strides 0
            given.append(draw(1).to(out.dtype)[0].expand(out.shape))
        elif layout == "contiguous":
            given.append(draw(*out.shape).to(out.dtype))
        else:
            given.append(laid_out(draw(*out.shape).to(out.dtype), layout))
    return given


# ---- the same five ops again, differentiable, in torch: to know gradients elementwise -------------------------------


def _normalize(x, norm, eps, weight=None, bias=None):
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    if norm != "none":
        x = x * (x.square().mean(-1, keepdim=True) + eps) ** -0.5
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def _softmax(scores, dim):
    powers = (scores - scores.detach().amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


def _distill(taps, queries, *, scale=None, norm="layer", eps=1e-6, weight=None, bias=None, key_mask=None):
    outputs = []
    for g, (tap, query) in enumerate(zip(taps, queries, strict=True)):
        x = _normalize(tap, norm, eps, weight and weight[g], bias and bias[g])
        query = query.expand(tap.shape[0], -1, -1)
        pooled = []
        for b in range(tap.shape[0]):
            keys = x[b] if key_mask is None else x[b][key_mask[g][b]]
            scores = (tap.shape[-1] ** -0.5 if scale is None else scale) * (query[b] @ keys.T)
            pooled.append(_softmax(scores, 1) @ keys if len(keys) else 0.0 * (query[b] + tap[b].sum()))
        outputs.append(torch.stack(pooled))
    return outputs


def _project(tokens, weights, biases=None, *, norm="none", eps=1e-6, activation=None, residuals=None, stack=False):
    outputs = []
    for i, (token, weight) in enumerate(zip(tokens, weights, strict=True)):
        y = _normalize(token, norm, eps) @ weight
        y = y if biases is None else y + biases[i]
        if activation == "relu":
            y = y * (y > 0)
        elif activation == "gelu":
            y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        outputs.append(y if residuals is None else y + residuals[i])
    return torch.stack(outputs) if stack else outputs


def _fuse(tokens, weights, biases=None, *, norm="none", eps=1e-6, gate=None, gate_kind=None):
    y = torch.stack(_project(tokens, weights, biases, norm=norm, eps=eps))
    if gate is None:
        return y.mean(0)
    if (gate_kind or ("layer" if len(gate) == len(y) else "token")) == "layer":
        return torch.tensordot(_softmax(gate, 0), y, 1)
    return (_softmax((y * gate).sum(-1) / math.sqrt(y.shape[-1]), 0)[..., None] * y).sum(0)


def _inject(features, keys, values, *, scale=None, norm="layer", eps=1e-6):
    return [
        f + _softmax((f.shape[-1] ** -0.5 if scale is None else scale) * _normalize(f, norm, eps) @ k.mT, -1) @ v
        for f, k, v in zip(features, keys, values, strict=True)
    ]


def _orthogonality(tokens):
    terms = []
    for tap in tokens:
        unit = tap / tap.square().sum(-1, keepdim=True).sqrt()
        rows = tap.shape[1]
        off = unit @ unit.mT - torch.eye(rows, dtype=tap.dtype)
        terms.append((off.square().sum((1, 2)) / max(rows * (rows - 1), 1)) * (rows > 1))
    return torch.stack(terms).mean()


restated = {
    "distill": _distill,
    "project": _project,
    "fuse": _fuse,
    "inject": _inject,
    "orthogonality": _orthogonality,
}


# ---- checks ----------------------------------------------------------------------------------------------------------


def assert_near(actual, expected, tolerance, label):
    """Same shape, finite, and no element further off than tolerance * max(1, largest expected)."""
    assert actual.shape == expected.shape, f"{label}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), f"{label}: not finite"
    if expected.numel():
        error = (actual.double() - expected).abs().max().item()
        limit = tolerance * max(1.0, expected.abs().max().item())
        assert error <= limit, f"{label}: off by {error:.3g}, allowed {limit:.3g}"


def check_values(op, function, arguments):
    """Float64 values against the NumPy oracle."""
    outputs = flat(function(**arguments))
    expected = oracle(op, arguments)
    assert len(outputs) == len(expected)
    for i, (actual, wanted) in enumerate(zip(outputs, expected, strict=True)):
        assert actual.dtype == torch.float64
        assert_near(actual, wanted, VALUES64, f"output {i}")


def check_gradients(op, function, arguments, wanted=None, layout="contiguous"):
    """Float64 gradients of every float argument (or of those named) against autograd through the restatement."""
    wanted = float_names(arguments) if wanted is None else wanted
    upstream = upstream_for(oracle(op, arguments), layout, seed=99)
    before = [g.clone() for g in upstream]
    actual = gradients(function, arguments, wanted, upstream)
    dense = [g.clone(memory_format=torch.contiguous_format) for g in upstream]
    expected = gradients(restated[op], remake(arguments, lambda _, t: t.detach().clone()), wanted, dense)
    assert set(actual) == set(expected)
    assert expected
    for label, wanted_gradient in expected.items():
        assert_near(actual[label], wanted_gradient, GRADIENTS64, f"gradient of {label}")
    for given, kept in zip(upstream, before, strict=True):
        assert torch.equal(given, kept), "the backward pass wrote into the gradient it was given"


def check_slopes(op, function, arguments, wanted=None):
    """Gradients against central differences of the NumPy oracle, along one random direction an argument tensor."""
    wanted = float_names(arguments) if wanted is None else wanted
    upstream = upstream_for(oracle(op, arguments), "contiguous", seed=7)
    draw, step = Draw(8), 1e-5
    for label, gradient in gradients(function, arguments, wanted, upstream).items():
        direction = draw(*gradient.shape)

        def loss(sign, label=label, direction=direction):
            moved = remake(arguments, lambda name, t: t + sign * step * direction if name == label else t)
            return sum((o * g).sum().item() for o, g in zip(oracle(op, moved), upstream, strict=True))

        slope = (loss(1) - loss(-1)) / (2 * step)
        # Rounding of two losses (size ~10, sums of ~1e3 terms) over 2e-5: 1e-9; third derivatives times 1e-10: less.
        assert abs((gradient * direction).sum().item() - slope) <= 1e-6 * max(1.0, abs(slope)), label


def gradcheck(function, arguments, wanted=None):
    """torch.autograd.gradcheck of a public op with its lists flattened."""
    wanted = float_names(arguments) if wanted is None else wanted
    labels = [label for label in tensors(arguments) if argument_of(label) in wanted]
    leaves = [tensors(arguments)[label].detach().clone().requires_grad_() for label in labels]

    def flattened(*given):
        table = dict(zip(labels, given, strict=True))
        return tuple(flat(function(**remake(arguments, lambda label, t: table.get(label, t)))))

    # In the interpreter a call takes a second: there along random directions, not element by element.
    interpreted = os.environ.get("FASTAV_BACKEND") == "triton"
    assert torch.autograd.gradcheck(flattened, leaves, fast_mode=interpreted)


# Two orders of the same float32 sums err independently, and the largest errors of two such draws seldom lie 4 apart; on
# a CPU with AVX2 alone two of PyTorch's own did, by 4.1, in a bias' gradient over 3072 tokens: 6. What float32
# arithmetic with one rounding at the end loses in 16 bits is the rounding, which is counted in full: 2.
FACTORS = {torch.float32: 6, torch.bfloat16: 2, torch.float16: 2}


def check_rounding(op, function, arguments, dtypes, wanted=None, out_dtype=None):
    """Half and single precision: errors of values and gradients at most a factor times what cannot be avoided.

    arguments are float64. Cannot be avoided: rounding the inputs, |f(x) - f(rounded x)| (largest element); rounding the
    output, half a unit in the last place of the largest; and float32 arithmetic, |plain float32 f - f| at the rounded
    inputs, which counts only where 16 bits do not drown it. Whoever keeps statistics, softmax and sums in float32
    and rounds once stays within FACTORS of that; whoever runs any of them in 16 bits, or cancels, does not.
    dtypes: one dtype, or {argument: dtype} for mixed calls.
    """
    wanted = float_names(arguments) if wanted is None else wanted
    if not isinstance(dtypes, dict):
        dtypes = dict.fromkeys(float_names(arguments), dtypes)
    rounded = arguments
    for name, dtype in dtypes.items():
        rounded = cast(rounded, dtype, only={name})
    widened, single = cast(rounded, torch.float64), cast(rounded, torch.float32)

    def differentiate(function, arguments, dtype):
        # Float64 draws of one seed, rounded as the outputs are: upstream gradients are inputs of the backward pass.
        given = [g.to(dtype or o.dtype) for g, o in zip(upstream, outputs, strict=True)]
        return gradients(function, arguments, wanted, given)

    outputs = flat(function(**rounded))
    assert out_dtype is None or {o.dtype for o in outputs} == {out_dtype}
    answers = zip(
        outputs,
        oracle(op, widened),
        oracle(op, arguments),
        [o.double() for o in flat(restated[op](**single))],
        strict=True,
    )
    for i, answer in enumerate(answers):
        _within(*answer, f"output {i}")

    exact_upstream = upstream_for([o.double() for o in outputs], "contiguous", seed=5)
    upstream = [g.to(o.dtype) for g, o in zip(exact_upstream, outputs, strict=True)]
    actual = differentiate(function, rounded, None)
    target = differentiate(restated[op], widened, torch.float64)
    plain = differentiate(restated[op], single, torch.float32)
    upstream = exact_upstream
    exact = differentiate(restated[op], arguments, torch.float64)
    for label, gradient in actual.items():
        assert gradient.dtype == dtypes[argument_of(label)]
        _within(gradient, target[label], exact[label], plain[label].double(), f"gradient of {label}")


def _within(actual, target, exact, plain, label):
    assert actual.shape == target.shape, f"{label}: {tuple(actual.shape)} instead of {tuple(target.shape)}"
    assert torch.isfinite(actual).all(), f"{label}: not finite"
    numbers = torch.finfo(actual.dtype)
    last_place = numbers.eps / 2 * max(target.abs().max().item(), numbers.smallest_normal)
    inputs = (exact - target).abs().max().item()
    arithmetic = (plain - target).abs().max().item()
    error = (actual.double() - target).abs().max().item()
    assert error <= FACTORS[actual.dtype] * (inputs + last_place + arithmetic), (
        f"{label}: off by {error:.3g}; rounded inputs cost {inputs:.3g}, the last place is {last_place:.3g}, "
        f"plain float32 costs {arithmetic:.3g}"
    )
