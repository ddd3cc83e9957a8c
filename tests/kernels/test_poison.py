"""Memory that a launcher allocates and does not write is full of NaN here: none of it must reach a result."""

import sys

import pytest
import torch

FORMS = ("distill", "distill-masked", "project", "project-ragged", "fuse", "fuse-token", "inject", "orthogonality")


@pytest.fixture
def poison(monkeypatch):
    empty, counts = torch.empty, []

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        if sys._getframe(1).f_globals["__name__"].startswith("fastav.kernels"):
            counts.append(tensor.numel())
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
        return tensor

    monkeypatch.setattr(torch, "empty", poisoned)
    return counts


@pytest.mark.parametrize("form", FORMS)
def test_results_are_as_without(ops, poison, monkeypatch, form):
    from forms import FORMS as CALLS
    from support import call, flat, float_names

    op, given = CALLS[form]

    def step():
        outputs, asked = call(getattr(ops, op), given, float_names(given))
        outputs = flat(outputs)
        found = torch.autograd.grad([o.square().sum() for o in outputs], list(asked.values()))
        return [*outputs, *found]

    poisoned = step()
    assert poison
    assert sum(poison)
    monkeypatch.undo()
    for actual, expected in zip(poisoned, step(), strict=True):
        assert torch.isfinite(actual).all()
        assert torch.equal(actual, expected)
