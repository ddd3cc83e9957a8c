"""How many kernels an op and the whole side branch launch: the same few for 3 taps and for 36."""

import pytest
import torch
from torch import nn

from fastav import FrozenBackbone, MettleAdapter, MettleConfig, ops

WIDTHS = (24, 10, 7)


def leaf(*shape):
    return torch.randn(*shape).requires_grad_()


def each(count, make):
    """One tensor an entry, of widths that differ."""
    return [make(WIDTHS[i % len(WIDTHS)]) for i in range(count)]


CALLS = {
    "distill": (
        lambda n: ops.distill(
            each(n, lambda d: torch.randn(2, 9, d)), each(n, lambda d: leaf(3, d)),
            weight=each(n, lambda d: leaf(d)), bias=each(n, lambda d: leaf(d)),
        ),
        1, 2,
    ),
    "distill, unfrozen taps": (
        lambda n: ops.distill(each(n, lambda d: leaf(2, 9, d)), each(n, lambda d: leaf(2, 3, d))), 1, 2,
    ),
    "project": (lambda n: ops.project(each(n, lambda d: leaf(4, d)), each(n, lambda d: leaf(d, 6))), 1, 1),
    "project, norm and activation": (
        lambda n: ops.project(
            each(n, lambda d: leaf(2, 4, d)), each(n, lambda d: leaf(d, 6)), each(n, lambda d: leaf(6)),
            residuals=each(n, lambda d: leaf(4, 6)), norm="layer", activation="gelu", stack=True,
        ),
        1, 2,
    ),
    "fuse": (
        lambda n: ops.fuse(
            each(n, lambda d: leaf(2, 4, d)), each(n, lambda d: leaf(d, 6)), each(n, lambda d: leaf(6)), norm="layer"
        ),
        1, 2,
    ),
    "fuse, gate on tokens": (
        lambda n: ops.fuse(each(n, lambda d: leaf(2, 4, d)), each(n, lambda d: leaf(d, 6)), gate=leaf(6)), 1, 2,
    ),
    "inject": (
        lambda n: ops.inject(
            each(n, lambda d: leaf(2, 9, d)), each(n, lambda d: leaf(2, 3, d)), each(n, lambda d: leaf(2, 3, d))
        ),
        1, 1,  # a second only where a sample is cut into parts
    ),
    "orthogonality": (lambda n: ops.orthogonality(each(n, lambda d: leaf(2, 4, d))), 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("count", [3, 36])
@pytest.mark.parametrize("name", CALLS)
def test_an_op_launches(launches, name, count):
    call, forward, backward = CALLS[name]
    out = call(count)
    outputs = [out] if isinstance(out, torch.Tensor) else out
    assert len(launches) == forward
    torch.autograd.backward(outputs, [torch.randn_like(o) for o in outputs])
    assert len(launches) == forward + backward, launches


@pytest.fixture
def uncopied(monkeypatch):
    """Fails where results do not leave an op as the kernel wrote them, which would be a launch that no hook sees."""
    from fastav.ops import _register

    def together(tensors):
        flat = _flat.together(tensors)
        assert flat.data_ptr() == tensors[0].data_ptr(), [tuple(t.shape) for t in tensors]
        return flat

    from fastav.ops import _flat

    monkeypatch.setattr(_register, "together", together)


def trunk(taps, width):
    blocks = nn.Sequential(*(nn.Linear(width, width) for _ in range(taps)))
    return FrozenBackbone(blocks, ["*"], example_input=torch.zeros(1, 5, width))


@pytest.mark.parametrize(("visual", "audio"), [(2, 1), (24, 12)])
@pytest.mark.usefixtures("uncopied")
def test_mettle_launches(launches, visual, audio):
    torch.manual_seed(0)
    adapter = MettleAdapter(trunk(visual, 10), trunk(audio, 7), MettleConfig(width=20)).eval()
    taps = [torch.randn(6, 5, 10) for _ in range(visual)], [torch.randn(6, 7, 7) for _ in range(audio)]
    out = adapter.forward_taps(*taps, num_segments=3)
    # Beside these, 5 operators of torch forward and 9 backward: tests/adapters/test_launches.py counts those.
    assert launches == [
        *["project_fwd_kernel"] * 2, "distill_fwd_kernel", *["project_fwd_kernel"] * 2, *["fuse_fwd_kernel"] * 2
    ]  # fmt: skip
    launches.clear()
    torch.autograd.backward([out.visual, out.audio], [torch.ones_like(out.visual), torch.ones_like(out.audio)])
    assert len(launches) == 11
