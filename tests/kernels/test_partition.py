"""How work is cut into programs: it shows in no bit of a result, and no partial result is lost."""

import importlib
import math
import mmap
import subprocess
import sys

import pytest
import torch

from fastav import kernels, ops, reference
from fastav.kernels import launch


def taps_and_queries(shapes, rows, dtype=torch.float32, per_sample=False):
    generator = torch.Generator().manual_seed(0)
    taps = [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]
    lead = [(shape[0], rows) if per_sample else (rows,) for shape in shapes]
    queries = [torch.randn(*at, shape[-1], generator=generator) for at, shape in zip(lead, shapes, strict=True)]
    return taps, [q.requires_grad_() for q in queries]


def gradients(taps, queries):
    outputs = ops.distill(taps, queries)
    return outputs, torch.autograd.grad([o.sin().sum() for o in outputs], queries)


SHAPES = [(2, 300, 24), (3, 65, 10), (1, 7, 130)]


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_tap_in_parts_is_the_tap(monkeypatch, launches, per_sample):
    taps, queries = taps_and_queries(SHAPES, 3, torch.float64, per_sample)
    queries = [q.detach().double().requires_grad_() for q in queries]
    whole = gradients(taps, queries)
    distill, distill_backward = (
        importlib.import_module(f"fastav.kernels.{n}") for n in ("distill", "distill_backward")
    )
    monkeypatch.setattr(distill, "FORWARD_BYTES", 1)  # one tile a program, the most parts there can be
    monkeypatch.setattr(distill_backward, "MOST", 1)
    monkeypatch.setattr(distill_backward, "FEWEST", 1)
    distill._plan_forward.cache_clear(), distill_backward._plan_backward.cache_clear()
    programs = []
    launch.hooks.append(lambda this: programs.append((this.name, this.programs)))
    parts = gradients(taps, queries)
    launch.hooks.pop()
    distill._plan_forward.cache_clear(), distill_backward._plan_backward.cache_clear()
    block = launch.blocks("distill_fwd_kernel", "interpreter", 8).sizes["BLOCK_N"]
    tiles = sum(b * math.ceil(n / block) for b, n, _ in SHAPES)
    assert programs[0] == ("distill_fwd_kernel", tiles)
    for one, other in zip(whole, parts, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a - b).abs().max() <= 1e-13  # float64: two orders of adding 300 numbers of size 1


def test_counters_are_left_at_zero():
    taps, queries = taps_and_queries([(2, 3000, 96)], 3)  # 1.2 MB a sample: three parts
    ops.distill(taps, queries)
    fuse = [torch.randn(2, 3, 8) for _ in range(9)], [torch.randn(8, 4) for _ in range(9)]
    ops.fuse(*fuse)
    ops.orthogonality(fuse[0])
    assert launch._arrivals
    assert not any(counters.any() for counters in launch._arrivals.values())


def test_what_else_is_in_a_launch_changes_no_bit():
    # What schedule="streamed" rests on, which pools the same taps in several launches.
    taps, queries = taps_and_queries([(2, 2000, 96), (3, 65, 10), (2, 144, 48)], 3, torch.float16)
    together, d_together = gradients(taps, queries)
    for i in range(len(taps)):
        alone, d_alone = gradients(taps[i : i + 1], queries[i : i + 1])
        assert torch.equal(alone[0], together[i])
        assert torch.equal(d_alone[0], d_together[i])


def test_what_else_is_in_the_batch_changes_no_bit_forward():
    taps, queries = taps_and_queries([(4, 2000, 96), (4, 65, 10)], 3, torch.float16)
    together = ops.distill(taps, queries)
    for b in range(4):
        alone = ops.distill([tap[b : b + 1] for tap in taps], queries)
        assert all(torch.equal(a[0], t[b]) for a, t in zip(alone, together, strict=True))


def test_one_storage_or_many_is_the_same():
    # Views of one tensor travel as one pointer, others as a tuple of them.
    taps, queries = taps_and_queries(SHAPES, 3)
    flat = torch.cat([tap.flatten() for tap in taps]).split([tap.numel() for tap in taps])
    views = [piece.view_as(tap) for piece, tap in zip(flat, taps, strict=True)]
    assert len(launch.Operand.of(views).pointers(range(3))) == 1
    assert len(launch.Operand.of(taps).pointers(range(3))) == 4
    for a, b in zip(ops.distill(taps, queries), ops.distill(views, queries), strict=True):
        assert torch.equal(a, b)


def untouched(elements):
    """Addresses for so many float16 elements; memory stands behind those alone that are written."""
    no_reserve = 0x4000  # Linux' MAP_NORESERVE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return torch.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=torch.float16)


def test_offsets_beyond_32_bits():
    # Samples 2^31 + 64 elements apart.
    gap, tokens, width = 2**31 + 64, 33, 16
    room = untouched(gap + tokens * width)
    tap = room.as_strided((2, tokens, width), (gap, width, 1))
    tap.copy_(torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(1)))
    assert tap[1].storage_offset() > 2**31
    queries = torch.randn(3, width, requires_grad=True)
    (far,), (near,) = ops.distill([tap], [queries]), ops.distill([tap.clone()], [queries])
    assert torch.equal(far, near)
    upstream = torch.randn_like(far)
    d_far, d_near = (torch.autograd.grad(out, queries, upstream)[0] for out in (far, near))
    assert torch.equal(d_far, d_near)


@pytest.mark.parametrize(("gap", "tokens"), [(2**27, 18), (2**31 + 16, 3)])
def test_rows_beyond_32_bits(gap, tokens):
    # The first stride fits into 32 bits, its product with a token's number does not; the second does not fit either.
    width = 16
    room = untouched(gap * tokens)
    tap = room.as_strided((1, tokens, width), (0, gap, 1))
    tap.copy_(torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(2)))
    queries = torch.randn(3, width)
    (far,), (near,) = ops.distill([tap], [queries]), ops.distill([tap.clone()], [queries])
    assert torch.equal(far, near)


@pytest.mark.parametrize("op", ["distill", "inject"])
def test_float64_is_exact_enough_for_the_reference(op):
    # 1536 tokens in several tiles and blocks of more than 32 query rows, unlike anything in a single tile.
    generator = torch.Generator().manual_seed(3)
    tap, rows = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((2, 777, 130), (2, 40, 130)))
    arguments = ([tap], [rows]) if op == "distill" else ([tap], [rows], [rows.flip(1)])
    (actual,), (expected,) = getattr(ops, op)(*arguments), getattr(reference, op)(*arguments)
    assert (actual - expected).abs().max() <= 1e-13  # float64: sums of 777 numbers of size 1


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_rows_of_one_number_in_half_precision(norm):
    # Padding: 1 / deviation is 1 / sqrt(eps) = 1e6 there, which float16 does not hold.
    generator = torch.Generator().manual_seed(4)
    tap = torch.randn(2, 20, 24, generator=generator).half()
    tap[0, 3], tap[1, :5] = 0, 0
    queries, weight = torch.randn(3, 24, generator=generator).requires_grad_(), torch.ones(24, requires_grad=True)
    (out,) = ops.distill([tap], [queries], norm=norm, eps=1e-12, weight=[weight])
    found = torch.autograd.grad(out.sin().sum(), [queries, weight])
    (expected,) = reference.distill([tap.double()], [queries.double()], norm=norm, eps=1e-12, weight=[weight.double()])
    wanted = torch.autograd.grad(expected.sin().sum(), [queries, weight])
    for actual, right in zip([out, *found], [expected, *wanted], strict=True):
        # Operands of 11 bits put scores of 10 off by 0.5 %; the softmax hands that on, and the sine's slope once more.
        assert (actual - right).abs().max() <= 0.03 * right.abs().max()


def test_weight_gradients_of_long_loud_taps_in_half_precision():
    generator = torch.Generator().manual_seed(5)
    tap = (5000 * torch.randn(1, 2000, 64, generator=generator)).half()
    queries, weight = torch.randn(3, 64, generator=generator), torch.ones(64, requires_grad=True)
    (out,) = ops.distill([tap], [queries], weight=[weight])
    (actual,) = torch.autograd.grad(out.sin().sum(), [weight])
    (out,) = reference.distill([tap], [queries], weight=[weight])
    (expected,) = torch.autograd.grad(out.sin().sum(), [weight])
    # p / deviation is 1e-7 here, where float16 has one digit left; scaled to its largest first it has 11 bits.
    assert (actual - expected).abs().max() <= 2e-3 * expected.abs().max()


def test_a_single_channel_has_no_direction():
    # Less its own mean it is zero, and so is what its norm hands back, however the mean was rounded.
    def leaf(*shape):
        return (20 + torch.randn(*shape)).requires_grad_()

    tap, queries, keys, values, matrix = leaf(2, 9, 1), leaf(3, 1), leaf(2, 3, 1), leaf(2, 3, 1), leaf(1, 4)
    (pooled,) = ops.distill([tap], [queries])
    (features,) = ops.inject([tap], [keys], [values])
    (mapped,) = ops.project([tap], [matrix], norm="layer")
    assert not pooled.any()
    assert not mapped.any()
    for out, asked in ((pooled, (tap, queries)), (features, (keys,)), (mapped, (tap, matrix))):
        assert not any(grad.any() for grad in torch.autograd.grad(out.square().sum() + out.sum(), asked))


def test_the_same_layout_elsewhere_in_a_storage_is_the_same_plan():
    rows = torch.randn(8, 9, 16)
    queries = [torch.randn(3, 16)]
    plan = importlib.import_module("fastav.kernels.distill")._plan_forward
    first = plan.cache_info().currsize
    for start in range(0, 8, 2):
        ops.distill([rows[start : start + 2]], queries)
    assert plan.cache_info().currsize <= first + 1


@pytest.mark.parametrize("switch", ["allow_tf32 = True", "fp32_precision = 'tf32'"])
def test_either_switch_allows_tf32(switch):
    ask = "print(precision(torch.float32, 'sm_90'))"
    code = [
        "import torch",
        "from fastav.kernels.launch import precision",
        ask,
        f"torch.backends.cuda.matmul.{switch}",
        ask,
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tf32x3", "tf32"]


def test_what_the_kernels_refuse():
    wide = {"features": [torch.zeros(1, 4, 8)], "keys": [torch.zeros(1, 300, 8)], "values": [torch.zeros(1, 300, 8)]}
    assert "300" in kernels.refusal("inject_forward", wide)
    with pytest.raises(RuntimeError, match=r"does not serve this call.*300"):
        ops.inject(**wide)
    assert "200" in kernels.refusal("orthogonality_forward", {"tokens": [torch.zeros(1, 200, 8)]})
    assert not kernels.refusal("orthogonality_forward", {"tokens": [torch.zeros(1, 128, 8)]})


def test_plans_are_few(monkeypatch):
    monkeypatch.setattr(launch, "PLANS", 3)
    made = []
    make = launch.planned(lambda number, device: made.append(number) or number)
    for number in (1, 2, 1, 2, 3):
        assert make(number, torch.device("cpu")) == number
    assert make(4, torch.device("cpu")) == 4  # three are there: they make room together
    assert make(1, torch.device("cpu")) == 1
    assert make(4, torch.device("cpu")) == 4
    assert made == [1, 2, 3, 4, 1]
