"""The check of methods, on methods that are right and on ones that are not."""

import pytest
import torch
from torch.utils._pytree import tree_map

import fastav
from fastav.baselines import FrozenFeatures, Naive
from fastav.baselines.base import Seen
from fastav.cost import METHODS, OURS, Step, WrongError, build_step, check, random_inputs
from fastav.ops import _backends, _register
from fastav.tasks import LocalizationTask

pytest.importorskip("timm")
pytest.importorskip("greenlet")
pytest.importorskip("peft")


def step_of(method, inputs):
    torch.manual_seed(0)
    labels = torch.randint(29, inputs[0].shape[:2])
    return Step(method, LocalizationTask(28, num_tokens=1, width=128), inputs, {"labels": labels})


@pytest.fixture
def inputs(pair):
    return random_inputs(*pair, clips=1, segments=2)


@pytest.mark.parametrize("name", METHODS)
def test_all_methods_are_what_they_claim_to_be(pair, inputs, name):
    step = build_step(name, *pair, inputs)
    before = [p.detach().clone() for p in step.parameters]
    # DG-SCT adds behind its first whole audio block: no gradient need run through that one; LAVISH hears with its eyes.
    reached = {"lora": (5, 5), "naive": (5, 5), "lavish": (3, 3), "dg-sct": (4, 5), "full": (5, 5)}.get(name, (0, 5))
    assert check(step) == dict(zip(("reached", "blocks"), reached, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, step.parameters, strict=True))
    assert step.method.training


class Detached(Naive):
    """Says that it learns in the backbones, and its audio side does not."""

    def _run(self, visual, audio, segments):
        seen = super()._run(visual, audio, segments)
        with torch.no_grad():
            heard = self._taps("audio", audio)[-1]
        return Seen(seen.visual, heard)


def test_a_gradient_that_is_missing_is_found(pair, inputs):
    with pytest.raises(WrongError, match=r"in a random direction its loss changes by .*, its gradient says"):
        check(step_of(Detached(*pair), inputs))


@pytest.mark.parametrize(("method", "reached"), [(FrozenFeatures, 0), (Naive, 5)])
def test_claims_about_the_backbones_are_checked(pair, inputs, method, reached):
    claiming = method(*pair)
    claiming.through = not method.through
    step = step_of(claiming, inputs)
    with pytest.raises(WrongError, match=f"run through {reached} blocks, its `through` is {claiming.through}"):
        check(step)


class Lost(Naive):
    """Gives what is not a number."""

    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        return out._replace(audio=torch.nan * out.audio)


def test_what_is_not_a_number_is_found(pair, inputs):
    with pytest.raises(WrongError, match=r"the gradient of .* is not finite"):
        check(step_of(Lost(*pair), inputs))


def test_a_gradient_of_another_sum_is_found(pair, inputs, monkeypatch):
    """As a wrong backward pass would give it."""
    real = torch.autograd.grad

    def halved(*args, **kwargs):
        first, *rest = real(*args, **kwargs)
        return (None if first is None else first / 2, *rest)

    monkeypatch.setattr(torch.autograd, "grad", halved)
    with pytest.raises(WrongError, match="in a random direction"):
        check(step_of(Naive(*pair), inputs))


class Still(Naive):
    """Trains a matrix that nothing reads."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.idle = torch.nn.Linear(3, 3)


def test_matrices_without_a_gradient_are_named(pair, inputs):
    with pytest.raises(WrongError, match=r"^idle\.weight, which it trains, has no gradient"):
        check(step_of(Still(*pair, standardize_batches=1), inputs))


def test_backbones_that_start_as_identities_are_looked_behind(tiny, inputs):
    """A new Swin V2 adds its blocks' parts through norms of zero: LoRA there would seem to have no gradient."""
    eyes, ears = tiny.swin(), tiny.vit(in_chans=1)
    norms = [p for name, p in eyes.named_parameters() if "norm1.weight" in name]
    assert norms
    assert not any(p.any() for p in norms)
    check(build_step("lora", eyes, ears, random_inputs(eyes, ears, clips=1, segments=2)))
    assert not any(p.any() for p in norms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ops_that_are_wrong_as_they_are_timed_are_found(pair, inputs, monkeypatch, dtype):
    """Right in float64, and 1 % off in what is timed."""
    monkeypatch.setattr(_backends, "_chosen", None)
    pair, inputs = [module.to(dtype) for module in pair], [x.to(dtype) for x in inputs]
    step = build_step("mettle", *pair, inputs)
    check(step)
    real = _backends.implementation

    def implementation(function, device, tensors):
        found = real(function, device, tensors)
        chosen = _backends._chosen
        if function != "fuse_backward" or chosen is not None:
            return found
        return lambda *args, **options: {
            name: [1.01 * x for x in some] for name, some in found(*args, **options).items()
        }

    monkeypatch.setattr(_register, "implementation", implementation)
    with pytest.raises(WrongError, match=r"its gradients, with taps of torch.float32, are .* of their size off"):
        check(step)


def changed_distill(monkeypatch, dtype, change):
    """Let distill serve taps of one dtype from changed tensors in float32."""
    monkeypatch.setattr(_backends, "_chosen", None)
    real = _backends.implementation

    def implementation(function, device, tensors):
        found = real(function, device, tensors)
        if not function.startswith("distill") or _backends._chosen is not None or tensors["taps"][0].dtype != dtype:
            return found

        def one(x):
            return change(x) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x

        return lambda *args, **options: found(*tree_map(one, args), **tree_map(one, options))

    monkeypatch.setattr(_register, "implementation", implementation)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_may_be_rounded_to_the_taps_dtype(pair, inputs, monkeypatch, name, dtype):
    """As GPUs multiply taps in 16 bits by them."""
    pair, inputs = [module.to(dtype) for module in pair], [x.to(dtype) for x in inputs]
    rounded = []

    def rounding(x):
        rounded.append(x)
        return x.to(dtype).float()

    changed_distill(monkeypatch, dtype, rounding)
    check(build_step(name, *pair, inputs))
    assert rounded


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ops_that_are_wrong_in_16_bits_alone_are_found(pair, inputs, monkeypatch, dtype):
    pair, inputs = [module.to(dtype) for module in pair], [x.to(dtype) for x in inputs]
    changed_distill(monkeypatch, dtype, lambda x: 1.1 * x)
    with pytest.raises(WrongError, match=rf"its gradients, with taps of {dtype}, are .* of their size off"):
        check(build_step("mettle", *pair, inputs))


def test_another_backend_is_left_as_it_was_chosen(pair, inputs):
    fastav.set_backend("reference")
    try:
        check(build_step("mettle", *pair, inputs))
        assert _backends._chosen == "reference"
    finally:
        fastav.set_backend("auto")
