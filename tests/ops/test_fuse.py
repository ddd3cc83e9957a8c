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

OP = "fuse"
# (L, K, D, W); every width of one call is D + layer, so that they differ
SIZES = [
    (1, 3, 65, 3),
    (3, 1, 96, 65),
    (2, 63, 3, 1),
    (3, 65, 1, 63),
    (2, 96, 63, 96),
    (63, 2, 3, 5),
    (2, 3, 1535, 16),
    (3, 3, 5, 1536),
]
RAGGED = [96, 5, 63, 65]  # D of four layers
GATES = ["mean", "layer", "token"]


def arguments(widths, rows, width, seed=0, *, clips=2, gate="mean", biases=True, **options):
    draw = Draw(seed)
    given = {
        "tokens": [(0.4 * draw(clips, rows, 1)).exp() * draw(clips, rows, d) + draw(clips, rows, 1) for d in widths],
        "weights": [draw(d, width) * d**-0.5 for d in widths],
    }
    if biases:
        given["biases"] = [draw(width) for _ in widths]
    if gate != "mean":
        given["gate"] = draw(len(widths) if gate == "layer" else width)
        if len(widths) == width:
            given["gate_kind"] = gate
    return {**given, **options}


@pytest.mark.parametrize(("layers", "rows", "wide", "width"), SIZES)
@pytest.mark.parametrize("gate", GATES)
def test_sizes(room, layers, rows, wide, width, gate):
    given = arguments([wide + layer for layer in range(layers)], rows, width, gate=gate, norm="layer")
    check_values(OP, room.fuse, given)
    check_gradients(OP, room.fuse, given)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("biases", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_every_form_on_ragged_layers(room, norm, gate, biases, eps):
    given = arguments(RAGGED, 3, 33, seed=1, gate=gate, biases=biases, norm=norm, eps=eps)
    check_values(OP, room.fuse, given)
    check_gradients(OP, room.fuse, given)


@pytest.mark.parametrize("kind", ["layer", "token"])
def test_gate_kind_where_both_fit_and_where_one_does(room, kind):
    for width in (4, 33):
        given = arguments(RAGGED, 3, width, seed=2, gate=kind, gate_kind=kind)
        check_values(OP, room.fuse, given)
        check_gradients(OP, room.fuse, given)
    both = arguments(RAGGED, 3, 4, seed=2, gate=kind)
    del both["gate_kind"]
    answers = [room.fuse(**both, gate_kind=other) for other in ("layer", "token")]
    assert (answers[0] - answers[1]).abs().max() > 0.01  # so that the test above tells one from the other


def test_equal_logits_are_the_mean(room):
    given = arguments(RAGGED, 3, 33, seed=3)
    mean = room.fuse(**given)
    for gate in (torch.full((4,), 2.5), torch.zeros(33)):  # softmax of equal logits; y . 0 is equal for all layers
        assert (room.fuse(**given, gate=gate.double()) - mean).abs().max() <= 1e-14  # roundings of float64 numbers ~1


@pytest.mark.parametrize("gate", GATES)
def test_slopes_of_the_oracle(room, gate):
    check_slopes(OP, room.fuse, arguments([7, 3], 3, 5, seed=4, gate=gate, norm="layer"))


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("gate", GATES)
def test_gradcheck(room, norm, gate):
    gradcheck(room.fuse, arguments([4, 3], 2, 3, seed=5, gate=gate, norm=norm))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tokens", "weights", "biases", "gate"])
@pytest.mark.parametrize("gate", ["layer", "token"])
def test_input_layouts(room, layout, name, gate):
    given = remake(
        arguments([48, 9], 5, 17, seed=6, gate=gate, norm="layer"),
        lambda label, t: laid_out(t, layout) if argument_of(label) == name else t,
    )
    check_values(OP, room.fuse, given)
    check_gradients(OP, room.fuse, given)


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("gate", GATES)
def test_upstream_gradient_layouts(room, layout, gate):
    check_gradients(OP, room.fuse, arguments([48, 9], 5, 17, seed=7, gate=gate, norm="layer"), layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_low_precision(room, dtype, gate, norm):
    given = arguments([1536, 96, 65], 8, 33, seed=8, gate=gate, norm=norm)
    check_rounding(OP, room.fuse, given, dtype, out_dtype=dtype)


@pytest.mark.parametrize("low", ["tokens", "weights", "gate"])
def test_mixed_precision(room, low):
    dtypes = dict.fromkeys(("tokens", "weights", "biases", "gate"), torch.float32)
    given = arguments(RAGGED, 3, 33, seed=13, gate="token", norm="layer")
    check_rounding(OP, room.fuse, given, {**dtypes, low: torch.bfloat16})


@pytest.mark.parametrize("gate", ["layer", "token"])
def test_large_gates(room, gate):
    given = arguments(RAGGED, 3, 33, seed=9, gate=gate)
    given["gate"] = given["gate"] * 300  # exp of such a logit overflows unless the largest is taken off first
    check_values(OP, room.fuse, given)
    check_gradients(OP, room.fuse, given)
    assert torch.isfinite(room.fuse(**cast(given, torch.float32))).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gate", GATES)
def test_same_bits_twice(room, dtype, gate):
    given = cast(arguments([1536, 96, 65], 16, 33, seed=10, clips=4, gate=gate, norm="layer"), dtype)
    wanted = {"tokens", "weights", "biases", "gate"}

    def once():
        output, asked = call(room.fuse, given, wanted)
        output.square().sum().backward()
        return [output, *(t.grad for t in asked.values())]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["tokens", "weights", "biases", "gate"])
@pytest.mark.parametrize("gate", ["layer", "token"])
def test_each_gradient_alone(room, name, gate):
    check_gradients(OP, room.fuse, arguments(RAGGED, 3, 33, seed=11, gate=gate, norm="layer"), wanted={name})


def test_lists_and_tuples_are_alike(room):
    given = arguments(RAGGED, 3, 33, seed=12)
    assert torch.equal(room.fuse(**given), room.fuse(**{name: tuple(items) for name, items in given.items()}))
