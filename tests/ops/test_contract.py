"""What all five ops promise beyond their numbers: signatures, dispatcher, autocast, checkpoints, bits."""

import inspect
import itertools
import math

import pytest
import torch
from forms import FORMS, OPS, PLAIN
from support import (
    Draw,
    argument_of,
    call,
    cast,
    check_gradients,
    check_values,
    flat,
    float_names,
    gradients,
    laid_out,
    remake,
    tensors,
    upstream_for,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastav.reference

every_op = pytest.mark.parametrize("op", OPS)
every_form = pytest.mark.parametrize("form", FORMS)


class Recorder(TorchDispatchMode):
    """Keeps every call of a fastav operator: the operator, its arguments, its outputs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.namespace == "fastav":
            self.calls.append((function, args, kwargs or {}, [out] if isinstance(out, torch.Tensor) else list(out)))
        return out


def recorded(function, arguments, wanted, layout="contiguous"):
    """The operator calls of one forward and one backward pass."""
    with Recorder() as forward:
        outputs, asked = call(function, arguments, wanted)
    with Recorder() as backward:
        torch.autograd.grad(flat(outputs), list(asked.values()), upstream_for(flat(outputs), layout, seed=1))
    return forward.calls, backward.calls


# ---- signatures ----------------------------------------------------------------------------------------------------

SIGNATURES = {
    "distill": "taps, queries, *, scale=None, norm='layer', eps=1e-06, weight=None, bias=None, key_mask=None",
    "project": "tokens, weights, biases=None, *, norm='none', eps=1e-06, activation=None, residuals=None, stack=False",
    "fuse": "tokens, weights, biases=None, *, norm='none', eps=1e-06, gate=None, gate_kind=None",
    "inject": "features, keys, values, *, scale=None, norm='layer', eps=1e-06",
    "orthogonality": "tokens",
}


@every_op
def test_signatures(room, op):
    parameters = inspect.signature(getattr(room, op)).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(plain)) == f"({SIGNATURES[op]})"


@every_op
def test_every_argument_by_name_or_in_order(room, op):
    function, given = getattr(room, op), PLAIN[op]
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    positional = [given[name] for name in names if name in given]
    rest = {name: value for name, value in given.items() if name not in names}
    by_name, in_order = flat(function(**given)), flat(function(*positional, **rest))
    assert all(torch.equal(a, b) for a, b in zip(by_name, in_order, strict=True))


def of_batch(form, length):
    """A form with its batch cut to length (project's tokens get a batch), and the arguments that have none."""
    op, given = FORMS[form]
    if op == "project" and given["tokens"][0].ndim == 2:
        given = {**given, "tokens": [t.expand(2, *t.shape) for t in given["tokens"]]}
    per_sample = {"taps", "tokens", "features", "keys", "values", "key_mask"}
    per_sample |= {"queries"} if form == "distill-masked" else set()

    def shorten(label, tensor):
        if argument_of(label) not in per_sample:
            return tensor
        return tensor[:, :length] if form == "orthogonality-tensor" else tensor[:length]

    return remake(given, shorten), float_names(given) - per_sample


@every_form
def test_batches_of_one(room, form):
    op = FORMS[form][0]
    given, _ = of_batch(form, 1)
    check_values(op, getattr(room, op), given)
    check_gradients(op, getattr(room, op), given)


# Not orthogonality: a mean over no samples is no number, and the op refuses it.
@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form][0] != "orthogonality"])
def test_empty_batches(room, form):
    op = FORMS[form][0]
    (full, _), (given, learned) = of_batch(form, 2), of_batch(form, 0)
    outputs = flat(getattr(room, op)(**given))
    for output, other in zip(outputs, flat(getattr(room, op)(**full)), strict=True):
        assert output.shape[-3] == 0
        assert output.shape[-2:] == other.shape[-2:]
    if learned:
        for gradient in gradients(getattr(room, op), given, learned, outputs).values():
            assert torch.equal(gradient, torch.zeros_like(gradient))


# ---- the dispatcher ------------------------------------------------------------------------------------------------


def opcheck(function, arguments, layout="contiguous"):
    """torch.library.opcheck on every operator that a forward and a backward pass call."""
    forward, backward = recorded(function, arguments, float_names(arguments), layout)
    assert forward
    assert backward
    for operator, args, kwargs, _ in forward + backward:
        detached = [
            [t.detach() for t in a] if isinstance(a, (list, tuple)) and a and isinstance(a[0], torch.Tensor) else a
            for a in args
        ]
        torch.library.opcheck(operator, tuple(detached), kwargs)


@every_form
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(ops, form, layout):
    op, given = FORMS[form]
    if layout == "transposed":
        given = remake(given, lambda _, t: laid_out(t, "transposed"))
    opcheck(getattr(ops, op), given, layout)


@pytest.mark.parametrize("op", OPS[:4])
def test_opcheck_of_mixed_precision(ops, op):
    # A backbone in 16 bits, an adapter in float32: the fake must know which of the two an output has.
    first = next(iter(PLAIN[op]))
    opcheck(getattr(ops, op), cast(cast(PLAIN[op], torch.float32), torch.bfloat16, only={first}))


def test_every_registered_operator_is_checked(ops):
    names = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastav::")}
    seen = set()
    for op, given in FORMS.values():
        for function, *_ in itertools.chain(*recorded(getattr(ops, op), given, float_names(given))):
            seen.add(function.name().split(".")[0])
    assert seen == names


@every_op
def test_one_operator_each_way_whatever_the_number_of_taps(ops, op):
    for times in (1, 6):
        given = {n: v * times if isinstance(v, list) else v for n, v in PLAIN[op].items()}
        if op == "fuse":
            given["gate"] = Draw(5)(3 * times)
            if times * 3 == 6:
                given["gate_kind"] = "layer"
        forward, backward = recorded(getattr(ops, op), given, float_names(given))
        assert (len(forward), len(backward)) == (1, 1)


@every_form
def test_only_the_gradients_asked_for_are_computed(ops, form):
    # Every argument is asked for alone; what the backward operators put out must have the sizes of its tensors only.
    op, given = FORMS[form]
    by_name = {
        name: [t.shape for k, t in tensors(given).items() if argument_of(k) == name] for name in float_names(given)
    }
    for name, own in by_name.items():
        _, backward = recorded(getattr(ops, op), given, {name})
        sizes = [tuple(out.shape) for *_, outs in backward for out in outs if out.numel()]
        assert sizes
        foreign = {tuple(s) for other in by_name if other != name for s in by_name[other]} - {tuple(s) for s in own}
        assert not foreign & set(sizes), f"asked for {name}, got gradients of shapes {sizes}"


# ---- autocast, checkpoints, bits -----------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backward_inside", [False, True], ids=["forward", "forward-and-backward"])
def test_autocast_changes_nothing(ops, form, dtype, backward_inside):
    op, given = FORMS[form]
    given = cast(given, torch.float32)

    def step(inside_forward, inside_backward):
        with torch.autocast("cpu", dtype=dtype, enabled=inside_forward):
            assert ((torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype) == inside_forward
            outputs, asked = call(getattr(ops, op), given, float_names(given))
            outputs = flat(outputs)
        with torch.autocast("cpu", dtype=dtype, enabled=inside_backward):
            upstream = upstream_for(outputs, "contiguous", seed=6)
            return [*outputs, *torch.autograd.grad(outputs, list(asked.values()), upstream)]

    for expected, actual in zip(step(False, False), step(True, backward_inside), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@every_form
def test_autocast_does_not_narrow_the_definition(form):
    op, given = FORMS[form]
    given = cast(given, torch.float32)
    function = getattr(fastav.reference, op)
    expected = flat(function(**given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = flat(function(**given))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@every_form
def test_checkpointed_gradients_are_the_same(ops, form):
    op, given = FORMS[form]
    runs = []

    def inner(**arguments):
        runs.append(1)
        return getattr(ops, op)(**arguments)

    def outer(**arguments):
        return checkpoint(inner, use_reentrant=False, **arguments)

    upstream = upstream_for(flat(getattr(ops, op)(**given)), "contiguous", seed=3)
    expected = gradients(getattr(ops, op), given, float_names(given), upstream)
    actual = gradients(outer, given, float_names(given), upstream)
    assert len(runs) == 2
    assert all(torch.equal(actual[label], gradient) for label, gradient in expected.items())


@pytest.fixture(params=["python", "aten"])
def poisoned(request, monkeypatch):
    """Uninitialised memory holds NaN: what Python allocates, or (deterministic mode) what any code asks of ATen."""
    if request.param == "aten":
        was = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory

        def start():
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = True

        yield start
        torch.use_deterministic_algorithms(was[0])
        torch.utils.deterministic.fill_uninitialized_memory = was[1]
        return

    def poisoning(allocate):
        def poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return poisoned

    def start():
        for owner, names in (
            (torch, ("empty", "empty_like", "empty_strided", "empty_permuted")),
            (torch.Tensor, ("new_empty", "new_empty_strided")),
        ):
            for name in names:
                monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))

    yield start


@every_form
def test_nothing_depends_on_uninitialised_memory(ops, form, poisoned):
    op, given = FORMS[form]

    def step():
        outputs, asked = call(getattr(ops, op), given, float_names(given))
        return [
            *flat(outputs),
            *torch.autograd.grad(sum(o.square().sum() for o in flat(outputs)), list(asked.values())),
        ]

    clean = step()
    poisoned()
    assert torch.empty(1000).isnan().all()
    assert all(torch.equal(actual, expected) for actual, expected in zip(step(), clean, strict=True))


@every_form
def test_inputs_are_left_alone(room, form):
    op, given = FORMS[form]
    before = {label: t.clone() for label, t in tensors(given).items()}
    outputs, asked = call(getattr(room, op), given, float_names(given))
    sum(o.square().sum() for o in flat(outputs)).backward()
    for label, tensor in tensors(given).items():
        assert torch.equal(tensor, before[label]), label
    storages = {t.untyped_storage().data_ptr() for t in asked.values()}
    assert not storages & {o.untyped_storage().data_ptr() for o in flat(outputs)}
