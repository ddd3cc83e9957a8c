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
    remake,
    upstream_for,
)

OP = "project"
SIZES = [
    (1, 3, 65),
    (3, 1, 96),
    (63, 65, 1),
    (65, 63, 3),
    (96, 96, 63),
    (1, 1, 1),
    (3, 1536, 16),
    (16, 16, 1536),
]  # (M, D, E)
RAGGED = [(65, 96, 16), (3, 5, 33), (1, 63, 3)]  # (M, D, E) of three layers
ALIKE = [(4, 96, 16), (4, 5, 16), (4, 63, 16)]  # what stack=True takes: M and E alike


def arguments(shapes, seed=0, *, batch=None, biases=True, residuals=None, **options):
    """batch: None for tokens (M, D), else for (B, M, D). residuals: the name of a shape that broadcasts."""
    draw = Draw(seed)
    lead = () if batch is None else (batch,)
    given = {
        "tokens": [(0.4 * draw(*lead, m, 1)).exp() * draw(*lead, m, d) + draw(*lead, m, 1) for m, d, _ in shapes],
        "weights": [draw(d, e) * d**-0.5 for _, d, e in shapes],
    }
    if biases:
        given["biases"] = [draw(e) for _, _, e in shapes]
    if residuals is not None:
        shape_of = {
            "full": lambda m, e: (*lead, m, e),
            "shared": lambda m, e: (m, e),
            "batch-of-one": lambda m, e: (*(1 for _ in lead), m, e),
            "row": lambda m, e: (e,),
            "one-row": lambda m, e: (*lead, 1, e),
            "column": lambda m, e: (m, 1),
        }[residuals]
        given["residuals"] = [draw(*shape_of(m, e)) for m, _, e in shapes]
    return {**given, **options}


@pytest.mark.parametrize(("rows", "width", "out"), SIZES)
def test_sizes(room, rows, width, out):
    given = arguments([(rows, width, out)], batch=2, norm="layer", activation="gelu", residuals="full")
    check_values(OP, room.project, given)
    check_gradients(OP, room.project, given)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.parametrize("batch", [None, 3], ids=["2d", "3d"])
@pytest.mark.parametrize("biases", [False, True], ids=["no-bias", "bias"])
def test_every_form_on_ragged_layers(room, norm, activation, batch, biases):
    given = arguments(RAGGED, seed=1, batch=batch, biases=biases, norm=norm, activation=activation)
    check_values(OP, room.project, given)
    check_gradients(OP, room.project, given)


@pytest.mark.parametrize("batch", [None, 3], ids=["2d", "3d"])
@pytest.mark.parametrize("residuals", ["full", "shared", "batch-of-one", "row", "one-row", "column"])
@pytest.mark.parametrize("stack", [False, True], ids=["list", "stack"])
def test_residuals_broadcast(room, batch, residuals, stack):
    given = arguments(ALIKE, seed=2, batch=batch, residuals=residuals, activation="relu", stack=stack)
    check_values(OP, room.project, given)
    check_gradients(OP, room.project, given)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_eps(room, norm):
    given = arguments(RAGGED, seed=3, norm=norm, eps=0.1)
    check_values(OP, room.project, given)
    check_gradients(OP, room.project, given)


@pytest.mark.parametrize("batch", [None, 3], ids=["2d", "3d"])
def test_stack(room, batch):
    given = arguments(ALIKE, seed=4, batch=batch, norm="layer", activation="gelu", residuals="full")
    listed, stacked = room.project(**given), room.project(**given, stack=True)
    assert isinstance(listed, list)
    assert isinstance(stacked, torch.Tensor)
    assert stacked.shape == ((3, 4, 16) if batch is None else (3, batch, 4, 16))
    assert torch.equal(torch.stack(listed), stacked)
    check_gradients(OP, room.project, {**given, "stack": True})


@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
def test_slopes_of_the_oracle(room, activation):
    shapes = [(7, 6, 5), (3, 5, 5)]
    given = arguments(shapes, seed=5, batch=2, norm="layer", activation=activation, residuals="shared")
    check_slopes(OP, room.project, given)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
def test_gradcheck(room, norm, activation):
    shapes = [(3, 4, 2), (2, 3, 3)]
    gradcheck(room.project, arguments(shapes, seed=6, norm=norm, activation=activation, residuals="shared"))
    stacked = [(3, 4, 2), (3, 3, 2)]
    gradcheck(room.project, arguments(stacked, seed=7, batch=2, norm=norm, activation=activation, stack=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tokens", "weights", "biases", "residuals"])
@pytest.mark.parametrize("batch", [None, 3], ids=["2d", "3d"])
def test_input_layouts(room, layout, name, batch):
    given = remake(
        arguments([(33, 48, 17), (5, 9, 3)], seed=8, batch=batch, norm="layer", activation="gelu", residuals="full"),
        lambda label, t: laid_out(t, layout) if argument_of(label) == name else t,
    )
    check_values(OP, room.project, given)
    check_gradients(OP, room.project, given)


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("stack", [False, True], ids=["list", "stack"])
def test_upstream_gradient_layouts(room, layout, activation, stack):
    given = arguments(ALIKE, seed=9, batch=3, norm="layer", activation=activation, residuals="shared", stack=stack)
    check_gradients(OP, room.project, given, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize(
    "activation", [None, "gelu"]
)  # relu: rounding an input may turn a gradient on, which is no measure
def test_low_precision(room, dtype, norm, activation):
    shapes = [(16, 1536, 33), (65, 96, 16)]
    given = arguments(shapes, seed=10, batch=3, norm=norm, activation=activation, residuals="shared")
    check_rounding(OP, room.project, given, dtype, out_dtype=dtype)


@pytest.mark.parametrize("low", ["tokens", "weights"])
def test_mixed_precision(room, low):
    # Weights in float32 beside a backbone in 16 bits, and the other way about.
    given = arguments(RAGGED, seed=19, batch=3, norm="layer", activation="gelu", residuals="shared")
    dtypes = dict.fromkeys(("tokens", "weights", "biases", "residuals"), torch.float32)
    check_rounding(OP, room.project, given, {**dtypes, low: torch.bfloat16})


def test_long_sums_of_half_precision_gradients(room):
    # The gradients of biases and residuals add 6000 rows: in bfloat16 a sum stops growing at 256 times a term.
    given = arguments([(1500, 16, 8)], seed=11, batch=4, residuals="row")
    check_rounding(OP, room.project, given, torch.bfloat16)


def test_tokens_far_from_zero_in_single_precision(room):
    # As for distill: a variance from E[x^2] - E[x]^2 would cost fifty times what rounding the tokens does.
    given = arguments([(63, 96, 33)], seed=12, norm="layer")
    given["tokens"] = [token + 50 for token in given["tokens"]]
    check_rounding(OP, room.project, given, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_same_bits_twice(room, dtype):
    shapes = [(65, 1536, 33), (96, 96, 16)]
    given = cast(arguments(shapes, seed=13, batch=4, norm="layer", activation="gelu", residuals="shared"), dtype)
    wanted = {"tokens", "weights", "biases", "residuals"}

    def once():
        outputs, asked = call(room.project, given, wanted)
        sum(o.square().sum() for o in outputs).backward()
        return [*outputs, *(t.grad for t in asked.values())]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["tokens", "weights", "biases", "residuals"])
def test_each_gradient_alone(room, name):
    given = arguments(RAGGED, seed=14, batch=2, norm="layer", activation="gelu", residuals="shared")
    check_gradients(OP, room.project, given, wanted={name})


def test_only_one_output_is_used(room):
    given = arguments(RAGGED, seed=15, residuals="full", activation="gelu")
    wanted = {"tokens", "weights", "biases", "residuals"}
    outputs, asked = call(room.project, given, wanted)
    outputs[1].square().sum().backward()
    alone = {name: items[1:2] if isinstance(items, list) else items for name, items in given.items()}
    outputs, lonely = call(room.project, alone, wanted)
    outputs[0].square().sum().backward()
    for name in wanted:
        assert (
            asked[f"{name}[1]"].grad - lonely[f"{name}[0]"].grad
        ).abs().max() <= 1e-12  # float64, one and the same sum
        for other in (0, 2):
            grad = asked[f"{name}[{other}]"].grad
            assert grad is None or not grad.any()


def test_one_tensor_in_several_places(room):
    # The same meta-tokens as tokens and as residual, and shared by two entries: their gradients add.
    draw = Draw(16)
    tokens, weights = draw(4, 9).requires_grad_(), [draw(9, 9), draw(9, 9)]
    outputs = room.project([tokens, tokens], weights, residuals=[tokens, tokens])
    upstream = upstream_for(outputs, "contiguous", seed=17)
    (actual,) = torch.autograd.grad(outputs, tokens, upstream)
    expected = sum(g @ w.T + g for g, w in zip(upstream, weights, strict=True))
    assert (actual - expected).abs().max() <= 1e-12  # float64, sums of 9


def test_gelu_is_the_exact_one(room):
    points = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]
    (output,) = room.project([points], [torch.ones(1, 1, dtype=torch.float64)], activation="gelu")
    exact = torch.nn.functional.gelu(points)
    assert (
        output - exact
    ).abs().max() <= 1e-15 * 4 * 4  # float64 roundings of numbers up to 4; the tanh form differs by 4e-4


def test_lists_and_tuples_are_alike(room):
    given = arguments(RAGGED, seed=18, residuals="full")
    as_tuples = {name: tuple(items) for name, items in given.items()}
    for a, b in zip(flat(room.project(**given)), flat(room.project(**as_tuples)), strict=True):
        assert torch.equal(a, b)
