import pytest
import torch
from support import (
    LAYOUTS,
    Draw,
    argument_of,
    call,
    cast,
    check_gradients,
    check_rounding,
    check_slopes,
    check_values,
    flat,
    gradcheck,
    laid_out,
    oracle,
    remake,
    tensors,
)

OP = "distill"
# (N, R, D): each of 1, 3, 63, 65, 96 in each place, and the widest and longest that real backbones have.
SIZES = [(1, 3, 65), (3, 1, 96), (63, 65, 1), (65, 63, 3), (96, 96, 63), (1, 1, 1), (1536, 3, 3), (65, 3, 1536)]
# Three taps, alike in nothing but R.
RAGGED = [(2, 65, 96), (1, 3, 5), (3, 63, 65)]


def arguments(shapes, rows, seed=0, *, shared=True, affine=(), mask=False, **options):
    """Keyword arguments of distill for taps of the shapes (B, N, D): float64, rows of uneven mean and size."""
    draw = Draw(seed)
    given = {
        "taps": [(0.4 * draw(b, n, 1)).exp() * draw(b, n, d) + draw(b, n, 1) for b, n, d in shapes],
        "queries": [draw(rows, d) if shared else draw(b, rows, d) for b, _, d in shapes],
    }
    if "weight" in affine:
        given["weight"] = [1 + 0.3 * draw(d) for _, _, d in shapes]
    if "bias" in affine:
        given["bias"] = [0.3 * draw(d) for _, _, d in shapes]
    if mask:
        given["key_mask"] = [draw.mask(b, n) for b, n, _ in shapes]
        given["key_mask"][0][-1] = False  # one sample without any key
    return {**given, **options}


@pytest.mark.parametrize(("tokens", "rows", "width"), SIZES)
def test_sizes(room, tokens, rows, width):
    given = arguments([(2, tokens, width)], rows)
    check_values(OP, room.distill, given)
    check_gradients(OP, room.distill, given)


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("affine", [(), ("weight",), ("bias",), ("weight", "bias")], ids="+".join)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-sample"])
@pytest.mark.parametrize("mask", [False, True], ids=["all-keys", "masked"])
def test_every_form_on_ragged_taps(room, norm, affine, shared, mask):
    given = arguments(RAGGED, 3, seed=1, shared=shared, affine=affine, mask=mask, norm=norm)
    check_values(OP, room.distill, given)
    check_gradients(OP, room.distill, given)


@pytest.mark.parametrize(
    "options", [{"scale": 0.37}, {"scale": 0.0}, {"scale": 2}, {"eps": 0.1}, {"norm": "rms", "eps": 0.1}]
)
def test_scale_and_eps(room, options):
    given = arguments(RAGGED, 3, seed=2, affine=("weight", "bias"), **options)
    check_values(OP, room.distill, given)
    check_gradients(OP, room.distill, given)


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-sample"])
def test_slopes_of_the_oracle(room, norm, shared):
    given = arguments([(2, 7, 6), (1, 3, 5)], 3, seed=3, shared=shared, affine=("weight", "bias"), mask=True, norm=norm)
    check_slopes(OP, room.distill, given)


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-sample"])
def test_gradcheck(room, norm, shared):
    given = arguments([(2, 4, 3), (1, 3, 5)], 2, seed=4, shared=shared, affine=("weight", "bias"), mask=True, norm=norm)
    gradcheck(room.distill, given)
    gradcheck(room.distill, given, wanted={"queries", "weight", "bias"})  # frozen taps may take another way


def test_a_sample_without_keys_gives_zeros_and_no_gradient(room):
    given = arguments(RAGGED, 3, seed=5, shared=False, affine=("weight", "bias"), mask=True)
    outputs, asked = call(room.distill, given, wanted={"taps", "queries"})
    assert torch.equal(outputs[0][-1], torch.zeros_like(outputs[0][-1]))
    assert (outputs[0][0] != 0).any()
    sum(o.square().sum() + o.sum() for o in outputs).backward()
    for label in ("taps[0]", "queries[0]"):
        assert torch.equal(asked[label].grad[-1], torch.zeros_like(asked[label][-1])), label
        assert (asked[label].grad[0] != 0).any()


@pytest.mark.parametrize("padding", [1e6, float("inf"), float("nan")])
def test_masked_tokens_do_not_count(room, padding):
    # Whatever a padded token holds: NaN times a weight of zero would be NaN.
    given = arguments(RAGGED, 3, seed=6, affine=("weight",), mask=True)
    loud = [torch.where(m[..., None], t, padding) for t, m in zip(given["taps"], given["key_mask"], strict=True)]
    runs = []
    for taps in (given["taps"], loud):
        outputs, asked = call(room.distill, {**given, "taps": taps}, wanted={"taps", "queries", "weight"})
        sum(o.square().sum() for o in outputs).backward()
        runs.append([*outputs, *(t.grad for t in asked.values())])
    for quiet, other in zip(*runs, strict=True):
        assert torch.equal(quiet, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["taps", "queries", "weight", "key_mask"])
def test_input_layouts(room, layout, name):
    given = arguments(
        [(2, 33, 48), (3, 5, 9)], 3, seed=7, shared=False, affine=("weight", "bias"), mask=name == "key_mask"
    )

    def relaid(label, tensor):
        if argument_of(label) != name:
            return tensor
        # NaN around a mask is meaningless: bool(NaN) is True, so surroundings attend if they are read.
        return laid_out(tensor, layout)

    given = remake(given, relaid)
    check_values(OP, room.distill, given)
    check_gradients(OP, room.distill, given)
    check_gradients(OP, room.distill, given, wanted={"queries", "weight", "bias"})


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-sample"])
def test_upstream_gradient_layouts(room, layout, shared):
    given = arguments([(2, 33, 48), (3, 5, 9)], 3, seed=8, shared=shared, affine=("weight", "bias"))
    check_gradients(OP, room.distill, given, layout=layout)
    check_gradients(OP, room.distill, given, wanted={"queries", "weight", "bias"}, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_low_precision(room, dtype, norm):
    given = arguments([(2, 1536, 65), (3, 63, 96)], 3, seed=9, affine=("weight", "bias"), norm=norm)
    check_rounding(OP, room.distill, given, dtype, out_dtype=dtype)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_outputs_are_in_the_dtype_of_the_query(room, low):
    given = arguments(RAGGED, 3, seed=10, affine=("weight", "bias"))
    wide = dict.fromkeys(("queries", "weight", "bias"), torch.float32)
    check_rounding(OP, room.distill, given, {"taps": low, **wide}, out_dtype=torch.float32)
    # Nothing but the queries is rounded to 16 bits here, the taps being float32.
    plain = arguments(RAGGED, 3, seed=10)
    check_rounding(OP, room.distill, plain, {"taps": torch.float32, "queries": low}, out_dtype=low)


def test_taps_far_from_zero_in_single_precision(room):
    # Row means of 50 standard deviations, as frozen transformers have them in single channels. Rounding the taps costs
    # 50 * 6e-8; a variance from E[x^2] - E[x]^2 would cost 2500 * 6e-8, fifty times that.
    given = arguments([(2, 63, 96), (1, 65, 33)], 3, seed=11)
    given["taps"] = [tap + 50 for tap in given["taps"]]
    check_rounding(OP, room.distill, given, torch.float32)


def test_half_precision_taps_whose_squares_overflow(room):
    # 3e3 squared is past float16's 65504; so are sums over the 96 channels of 1e3.
    given = arguments([(2, 63, 96)], 3, seed=12)
    given["taps"] = [1e3 * tap for tap in given["taps"]]
    assert max(tap.abs().max() for tap in given["taps"]) < 2e4
    check_rounding(OP, room.distill, given, torch.float16, wanted={"queries"})


def test_large_scores(room):
    # Scores up to thousands: exp of any of them overflows unless the largest is taken off first.
    given = arguments(RAGGED, 3, seed=13, scale=30.0)
    check_values(OP, room.distill, given)
    low = cast(given, torch.float32)
    outputs, asked = call(room.distill, low, wanted={"queries", "taps"})
    sum(o.sum() for o in outputs).backward()
    for output in [*outputs, *(t.grad for t in asked.values())]:
        assert torch.isfinite(output).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_without_variance(room, dtype):
    # Padding: rows of zeros and rows of one number. Both normalise to zero. The mean of 96 threes in float32 may be off
    # by 4 units of 2.4e-7; 1 / sqrt(eps) = 1e3 turns that into 1e-3.
    given = arguments([(2, 8, 96)], 3, seed=14)
    given["taps"][0][:, 2] = 0
    given["taps"][0][:, 5] = 3
    given["taps"][0][1] = 3
    given = cast(given, dtype)
    (output,) = room.distill(**given)
    (expected,) = oracle(OP, given)
    assert torch.equal(expected[1], torch.zeros_like(expected[1]))
    assert (output.double() - expected).abs().max() <= 1e-3 + torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_same_bits_twice(room, dtype):
    given = cast(arguments([(2, 1536, 96), (3, 63, 65)], 16, seed=15, affine=("weight", "bias")), dtype)

    def once():
        outputs, asked = call(room.distill, given, wanted={"queries", "weight", "bias"})
        sum(o.square().sum() for o in outputs).backward()
        return [*outputs, *(t.grad for t in asked.values())]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


def test_frozen_taps_get_no_gradient(room):
    given = arguments(RAGGED, 3, seed=16)
    outputs, _ = call(room.distill, given, wanted={"queries"})
    frozen = [tap for label, tap in tensors(given).items() if argument_of(label) == "taps"]
    sum(o.sum() for o in outputs).backward()
    assert all(tap.grad is None and not tap.requires_grad for tap in frozen)
    outputs, _ = call(room.distill, given)
    assert not any(o.requires_grad for o in outputs)


def test_a_single_unfrozen_tap_among_frozen_ones(room):
    given = arguments(RAGGED, 3, seed=17)
    outputs, asked = call(room.distill, given, wanted={"taps", "queries"})
    sum(o.square().sum() for o in outputs).backward()
    given["taps"][1].requires_grad_()
    sum(o.square().sum() for o in room.distill(**given)).backward()
    # The same sums in float64, whether or not the neighbours ask.
    assert (given["taps"][1].grad - asked["taps[1]"].grad).abs().max() <= 1e-12
    assert given["taps"][0].grad is None


def test_only_one_output_is_used(room):
    given = arguments(RAGGED, 3, seed=18)
    outputs, asked = call(room.distill, given, wanted={"queries", "taps"})
    outputs[1].square().sum().backward()
    alone = {"taps": given["taps"][1:2], "queries": given["queries"][1:2]}
    outputs, lonely = call(room.distill, alone, wanted={"queries", "taps"})
    outputs[0].square().sum().backward()
    for name in ("taps", "queries"):
        assert (
            asked[f"{name}[1]"].grad - lonely[f"{name}[0]"].grad
        ).abs().max() <= 1e-12  # float64, one and the same sum
        for other in (0, 2):
            grad = asked[f"{name}[{other}]"].grad
            assert grad is None or not grad.any()


def test_lists_and_tuples_are_alike(room):
    given = arguments(RAGGED, 3, seed=19)
    pairs = zip(room.distill(**given), room.distill(tuple(given["taps"]), tuple(given["queries"])), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert isinstance(room.distill(**given), list)


def test_absorbed_projections(room):
    # softmax(q (x W_k)^T / sqrt(r)) (x W_v) = distil(x, q W_k^T) W_v: the use every adapter makes of the op.
    draw = Draw(20)
    x, q, w_k, w_v = draw(2, 65, 96), draw(4, 16), draw(96, 16), draw(96, 16)
    plain = torch.nn.functional.layer_norm(x, (96,), eps=1e-6)
    wanted = torch.nn.functional.scaled_dot_product_attention(q.expand(2, -1, -1), plain @ w_k, plain @ w_v)
    (pooled,) = room.distill([x], [q @ w_k.T], scale=16**-0.5)
    assert (pooled @ w_v - wanted).abs().max() <= 1e-10  # sums of 65 * 96 products in float64
    assert flat(pooled)[0].shape == (2, 4, 96)
