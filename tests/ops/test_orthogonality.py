import pytest
import torch
from support import (
    LAYOUTS,
    Draw,
    call,
    cast,
    check_gradients,
    check_rounding,
    check_slopes,
    check_values,
    flat,
    gradcheck,
    laid_out,
    remake,
)

OP = "orthogonality"
SIZES = [(1, 3), (3, 1), (63, 65), (65, 3), (96, 96), (3, 1536), (2, 63)]  # (K, D)
RAGGED = [96, 5, 65, 3]  # D of four taps


def arguments(widths, rows, seed=0, clips=2):
    draw = Draw(seed)
    # Rows of very different lengths, pulled towards a common one so that there is something to penalise.
    return {"tokens": [(draw(clips, rows, d) + draw(d)) * draw(clips, rows, 1).exp() for d in widths]}


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_sizes(room, rows, width):
    given = arguments([width], rows)
    check_values(OP, room.orthogonality, given)
    check_gradients(OP, room.orthogonality, given)


@pytest.mark.parametrize("clips", [1, 3])
def test_ragged_widths(room, clips):
    given = arguments(RAGGED, 4, seed=1, clips=clips)
    check_values(OP, room.orthogonality, given)
    check_gradients(OP, room.orthogonality, given)
    check_slopes(OP, room.orthogonality, given)


def test_known_values(room):
    # Orthogonal rows of any length: 0. Equal or opposite rows: every off-diagonal entry is 1 or -1, so 1.
    assert room.orthogonality([torch.diag(torch.tensor([1.0, 20.0, 0.03]))[None]]).item() == 0
    same = torch.tensor([3.0, 4.0]) * torch.tensor([[1.0], [-1.0], [2.0]])
    assert room.orthogonality([same[None]]).item() == pytest.approx(1, abs=1e-6)  # a few roundings of float32
    # Rows at 60 degrees: cos^2 = 1/4.
    pair = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]])
    assert room.orthogonality([pair[None]]).item() == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("stacked", [False, True], ids=["list", "tensor"])
def test_gradcheck(room, stacked):
    tokens = Draw(2)(3, 2, 4, 5)
    gradcheck(room.orthogonality, {"tokens": tokens if stacked else list(tokens)})


def test_one_tensor_is_its_list(room):
    stacked = {"tokens": torch.stack([t + 0.2 for t in arguments([33] * 3, 4, seed=3)["tokens"]])}
    check_values(OP, room.orthogonality, stacked)
    check_gradients(OP, room.orthogonality, stacked)
    as_list = room.orthogonality(list(stacked["tokens"]))
    # The same float64 numbers, perhaps added in another order.
    assert abs(as_list.item() - room.orthogonality(**stacked).item()) <= 1e-14
    assert as_list.shape == ()


@pytest.mark.parametrize("stacked", [False, True], ids=["list", "tensor"])
def test_one_token_has_nothing_to_be_orthogonal_to(room, stacked):
    tokens = arguments([7, 7], 1, seed=4)["tokens"]
    loss, asked = call(room.orthogonality, {"tokens": torch.stack(tokens) if stacked else tokens}, wanted={"tokens"})
    assert loss.item() == 0
    (3 * loss).backward()
    assert all(torch.equal(t.grad, torch.zeros_like(t)) for t in asked.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stacked", [False, True], ids=["list", "tensor"])
def test_input_layouts(room, layout, stacked):
    tokens = arguments([9, 9, 9] if stacked else [9, 48, 3], 4, seed=5)["tokens"]
    given = {"tokens": torch.stack(tokens) if stacked else tokens}
    given = remake(given, lambda _, t: laid_out(t, layout))
    check_values(OP, room.orthogonality, given)
    check_gradients(OP, room.orthogonality, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision(room, dtype):
    check_rounding(OP, room.orthogonality, arguments([1536, 96, 65], 16, seed=6), dtype)


def test_long_and_short_rows_in_half_precision(room):
    # The square of 1e3 is past float16's largest number, that of 1e-4 below its smallest.
    unit = arguments([33], 4, seed=7)["tokens"][0]
    unit = unit / unit.norm(dim=-1, keepdim=True)
    for size in (1e4, 1e-3):
        given = {"tokens": [size * unit]}
        check_rounding(OP, room.orthogonality, given, torch.float16)


def test_a_row_of_zeros_is_no_nan(room):
    # W^o starts at zero and dropout may zero a token: its direction is undefined, a NaN would end the training.
    tokens = arguments([9], 4, seed=8)["tokens"]
    tokens[0][0, 1] = 0
    loss, asked = call(room.orthogonality, {"tokens": tokens}, wanted={"tokens"})
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(asked["tokens[0]"].grad).all()
    # The other sample has no such row: its gradient is the one it always has (half the mean over two samples).
    lonely, alone = call(room.orthogonality, {"tokens": [tokens[0][1:]]}, wanted={"tokens"})
    lonely.backward()
    assert (2 * asked["tokens[0]"].grad[1:] - alone["tokens[0]"].grad).abs().max() <= 1e-12  # float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_same_bits_twice(room, dtype):
    given = cast(arguments([1536, 96, 65], 16, seed=9, clips=4), dtype)

    def once():
        outputs, asked = call(room.orthogonality, given, wanted={"tokens"})
        outputs.backward()
        return [*flat(outputs), *(t.grad for t in asked.values())]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)
