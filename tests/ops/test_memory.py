"""What the ops keep for the backward pass: their own inputs, and nothing of a tap's size beside the tap."""

import pytest
import torch
from forms import FORMS, distill_arguments, inject_arguments
from support import (
    argument_of,
    call,
    cast,
    flat,
    float_names,
    laid_out,
    remake,
    tensors,
)

every_form = pytest.mark.parametrize("form", FORMS)


def saved_for_backward(function, arguments, wanted):
    """Elements of every storage that the graph keeps, by its address, and the outputs."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs, _ = call(function, arguments, wanted)
    return kept, flat(outputs)


def storages(items):
    return {t.untyped_storage().data_ptr() for t in items}


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "swapped", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_distill_keeps_the_taps_themselves_and_nothing_of_their_size(ops, layout, dtype):
    given = cast(distill_arguments(affine=True, mask=True), dtype)
    if layout != "contiguous":
        given["taps"] = [laid_out(tap, layout) for tap in given["taps"]]
    kept, outputs = saved_for_backward(ops.distill, given, {"queries", "weight", "bias"})
    beside = sum(size for address, size in kept.items() if address not in storages(given["taps"]))
    # What the design allows beside the taps: the other inputs, the outputs, and two numbers a row, as the log-sum-exp.
    small = sum(t.numel() for label, t in tensors(given).items() if argument_of(label) != "taps")
    small += sum(o.numel() + 2 * o.shape[0] * o.shape[1] for o in outputs)
    assert small < sum(tap.numel() for tap in given["taps"])  # so that one tap's copy would be seen
    assert beside <= small
    assert storages(given["taps"]) <= kept.keys()


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "swapped", "transposed", "expanded"])
def test_inject_keeps_the_features_themselves_and_nothing_of_their_size(ops, layout):
    given = inject_arguments()
    if layout != "contiguous":
        given["features"] = [laid_out(feature, layout) for feature in given["features"]]
    kept, outputs = saved_for_backward(ops.inject, given, {"keys", "values"})
    smallest = min(feature.numel() for feature in given["features"])
    beside = {address: size for address, size in kept.items() if address not in storages(given["features"])}
    assert max(beside.values()) < smallest
    assert not storages(outputs) & kept.keys()
    assert storages(given["features"]) <= kept.keys()


@every_form
def test_the_graph_hides_no_tensors(ops, form):
    # Kept outside save_for_backward, a tensor escapes offload hooks and the check that nobody has changed it.
    op, given = FORMS[form]
    outputs, _ = call(getattr(ops, op), given, float_names(given))
    seen, todo = set(), [o.grad_fn for o in flat(outputs)]
    python_nodes = 0
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        if hasattr(node, "__dict__"):
            python_nodes += 1
            hidden = list(vars(node).values())
            while hidden:
                value = hidden.pop()
                assert not isinstance(value, torch.Tensor), f"{node} holds a tensor as an attribute"
                if isinstance(value, dict):
                    hidden += value.values()
                elif isinstance(value, (list, tuple, set)):
                    hidden += value
    assert python_nodes


@every_form
def test_changing_an_input_before_the_backward_pass_is_noticed(ops, form):
    op, given = FORMS[form]
    given = remake(given, lambda _, t: t.clone())
    first = next(iter(float_names(given) & {"taps", "features", "tokens"}))
    learned = float_names(given) - {first} or {first}
    outputs, _ = call(getattr(ops, op), given, learned)
    loss = sum(o.square().sum() for o in flat(outputs))
    with torch.no_grad():
        flat(given[first])[0].add_(1)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        loss.backward()
