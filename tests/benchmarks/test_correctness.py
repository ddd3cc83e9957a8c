"""The gate in front of every figure: right answers pass, wrong ones do not."""

import dataclasses

import pytest
import torch

from benchmarks import cases, contenders, correctness, plain
from fastav import reference


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def truth(request):
    case = dataclasses.replace(cases.distill(cases.SMALL, 2, rows=5), taps=request.param)
    return correctness.Truth.of(case, "cpu")


@pytest.mark.parametrize("name", ["eager", "plain", "sdpa", "stacked", "folded"])
def test_contenders_are_right(truth, name):
    assert 0 < truth.check(contenders.CONTENDERS["distill"][name]("distill"), slack=4.0) <= 1


def test_a_wrong_scale_is_wrong(truth):
    def wrong(taps, queries, **settings):
        return reference.distill(taps, queries, **settings | {"scale": 1.02 * taps[0].shape[-1] ** -0.5})

    with pytest.raises(correctness.WrongError, match=r"is off by .*, allowed"):
        truth.check(wrong)


def test_a_wrong_gradient_is_wrong(truth):
    def wrong(taps, queries, **settings):
        halved = [q / 2 + q.detach() / 2 for q in queries]
        return reference.distill(taps, halved, **settings)

    with pytest.raises(correctness.WrongError, match="queries"):
        truth.check(wrong)


def test_numbers_that_are_not_finite_are_wrong(truth):
    def wrong(*lists, **settings):
        return [out / 0 for out in reference.distill(*lists, **settings)]

    with pytest.raises(correctness.WrongError, match="not finite"):
        truth.check(wrong)


def test_a_truth_that_is_not_finite_is_no_truth(monkeypatch):
    def broken(*lists, **settings):
        return [out * torch.nan for out in reference.distill(*lists, **settings)]

    case = cases.distill(cases.SMALL, 2, rows=5)
    monkeypatch.setattr(correctness.plain, "distill", broken)
    with pytest.raises(correctness.WrongError, match="the yardstick's output 0 is not finite"):
        correctness.Truth.of(case, "cpu")


@pytest.mark.parametrize("case", list(cases.forms(cases.SMALL_SIDE, cases.SMALL[:2], meta=5)), ids=lambda c: c.name)
def test_the_plain_ops_compute_what_the_reference_does(case):
    arguments = case.tensors(cases_random())
    wide = correctness.widened(arguments)
    actual = correctness.as_list(getattr(plain, case.op)(**wide, **case.settings))
    expected = correctness.as_list(getattr(reference, case.op)(**wide, **case.settings))
    # The plain orthogonality ends in float32.
    limit = 1e-6 if case.op == "orthogonality" else 1e-12
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).abs().max() <= limit * max(1, b.abs().max())


def cases_random():
    from benchmarks.layouts import random

    return random("cpu")
