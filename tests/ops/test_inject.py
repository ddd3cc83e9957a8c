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
    gradcheck,
    laid_out,
    remake,
)

OP = "inject"
LEARNED = {"keys", "values"}  # what asks for gradients when the features are frozen
# (N, M, D)
SIZES = [(1, 3, 65), (3, 1, 96), (63, 65, 1), (65, 63, 3), (96, 96, 63), (1, 1, 1), (1536, 3, 3), (3, 3, 1536)]
RAGGED = [(65, 96), (3, 5), (63, 65)]  # (N, D) of three stages


def arguments(shapes, rows, seed=0, clips=2, **options):
    draw = Draw(seed)
    return {
        "features": [(0.4 * draw(clips, n, 1)).exp() * draw(clips, n, d) + draw(clips, n, 1) for n, d in shapes],
        "keys": [draw(clips, rows, d) for _, d in shapes],
        "values": [draw(clips, rows, d) for _, d in shapes],
        **options,
    }


@pytest.mark.parametrize(("tokens", "rows", "width"), SIZES)
def test_sizes(room, tokens, rows, width):
    given = arguments([(tokens, width)], rows)
    check_values(OP, room.inject, given)
    check_gradients(OP, room.inject, given)


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("options", [{}, {"scale": 0.37}, {"scale": 0.0}, {"scale": 2}, {"eps": 0.1}], ids=str)
def test_every_form_on_ragged_stages(room, norm, options):
    given = arguments(RAGGED, 4, seed=1, norm=norm, **options)
    check_values(OP, room.inject, given)
    check_gradients(OP, room.inject, given)
    check_gradients(OP, room.inject, given, wanted=LEARNED)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_slopes_of_the_oracle(room, norm):
    check_slopes(OP, room.inject, arguments([(7, 6), (3, 5)], 3, seed=2, norm=norm))


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_gradcheck(room, norm):
    given = arguments([(4, 3), (3, 5)], 2, seed=3, norm=norm)
    gradcheck(room.inject, given)
    gradcheck(room.inject, given, wanted=LEARNED)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["features", "keys", "values"])
def test_input_layouts(room, layout, name):
    given = remake(
        arguments([(33, 48), (5, 9)], 3, seed=4),
        lambda label, t: laid_out(t, layout) if argument_of(label) == name else t,
    )
    check_values(OP, room.inject, given)
    check_gradients(OP, room.inject, given)
    check_gradients(OP, room.inject, given, wanted=LEARNED)


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_upstream_gradient_layouts(room, layout):
    given = arguments([(33, 48), (5, 9)], 3, seed=5)
    check_gradients(OP, room.inject, given, layout=layout)
    check_gradients(OP, room.inject, given, wanted=LEARNED, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_low_precision(room, dtype, norm):
    given = arguments([(1536, 65), (63, 96)], 3, seed=6, norm=norm)
    check_rounding(OP, room.inject, given, dtype, out_dtype=dtype)


def test_mixed_precision(room):
    dtypes = {"features": torch.bfloat16, "keys": torch.float32, "values": torch.float32}
    check_rounding(OP, room.inject, arguments(RAGGED, 4, seed=14), dtypes)


def test_features_far_from_zero_in_single_precision(room):
    # As for distill: a variance from E[x^2] - E[x]^2 would cost fifty times what rounding the features does.
    given = arguments([(63, 96), (65, 33)], 3, seed=7)
    given["features"] = [feature + 50 for feature in given["features"]]
    check_rounding(OP, room.inject, given, torch.float32)


def test_large_scores(room):
    given = arguments(RAGGED, 4, seed=8, scale=30.0)
    check_values(OP, room.inject, given)
    outputs, asked = call(room.inject, cast(given, torch.float32), wanted={"features", *LEARNED})
    sum(o.sum() for o in outputs).backward()
    for output in [*outputs, *(t.grad for t in asked.values())]:
        assert torch.isfinite(output).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_same_bits_twice(room, dtype):
    given = cast(arguments([(1536, 96), (63, 65)], 16, seed=9), dtype)

    def once():
        outputs, asked = call(room.inject, given, wanted=LEARNED)
        sum(o.square().sum() for o in outputs).backward()
        return [*outputs, *(t.grad for t in asked.values())]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


def test_frozen_features_get_no_gradient_and_are_left_alone(room):
    given = arguments(RAGGED, 4, seed=10)
    before = [feature.clone() for feature in given["features"]]
    outputs, _ = call(room.inject, given, wanted=LEARNED)
    sum(o.square().sum() for o in outputs).backward()
    for feature, kept, output in zip(given["features"], before, outputs, strict=True):
        assert feature.grad is None
        assert not feature.requires_grad
        assert torch.equal(feature, kept)
        assert output.untyped_storage().data_ptr() != feature.untyped_storage().data_ptr()


def test_zero_values_change_nothing(room):
    given = arguments(RAGGED, 4, seed=11)
    given["values"] = [torch.zeros_like(v) for v in given["values"]]
    for feature, output in zip(given["features"], room.inject(**given), strict=True):
        assert torch.equal(feature, output)


def test_only_one_output_is_used(room):
    given = arguments(RAGGED, 4, seed=12)
    outputs, asked = call(room.inject, given, wanted={"features", *LEARNED})
    outputs[1].square().sum().backward()
    outputs, lonely = call(
        room.inject, {name: items[1:2] for name, items in given.items()}, wanted={"features", *LEARNED}
    )
    outputs[0].square().sum().backward()
    for name in ("features", *LEARNED):
        assert (
            asked[f"{name}[1]"].grad - lonely[f"{name}[0]"].grad
        ).abs().max() <= 1e-12  # float64, one and the same sum
        for other in (0, 2):
            grad = asked[f"{name}[{other}]"].grad
            assert grad is None or not grad.any()


def test_returns_a_list(room):
    given = arguments(RAGGED, 4, seed=13)
    assert isinstance(room.inject(**given), list)
    as_tuples = {name: tuple(items) for name, items in given.items()}
    assert all(torch.equal(a, b) for a, b in zip(room.inject(**given), room.inject(**as_tuples), strict=True))
