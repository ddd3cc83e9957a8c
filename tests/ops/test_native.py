"""The native CPU kernels beyond what every backend promises: all vector paths, threads, memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forms import FORMS, OPS, PLAIN
from support import (
    Draw,
    call,
    cast,
    check_gradients,
    check_rounding,
    check_values,
    flat,
    float_names,
    gradients,
    oracle,
    upstream_for,
)

import fastav

pytestmark = pytest.mark.skipif(
    os.environ.get("FASTAV_BACKEND", "auto") not in ("auto", "native"), reason="another backend was chosen for this run"
)
NATIVE = fastav.backends()["native"]
# Where there is no native library, tests/test_build.py says whether there should be one.
needs_native = pytest.mark.skipif(not NATIVE.usable, reason=NATIVE.reason)


def runs(path):
    """Whether this CPU runs the vector path."""
    before = os.environ.get("FASTAV_CPU")
    os.environ["FASTAV_CPU"] = path
    try:
        return torch.ops.fastav_native.path() == path
    except RuntimeError:
        return False
    finally:
        del os.environ["FASTAV_CPU"]
        if before is not None:
            os.environ["FASTAV_CPU"] = before


@pytest.fixture(params=["avx512", "avx2", "portable"])
def native(request, monkeypatch):
    """The ops, served by the native kernels on one vector path."""
    if not NATIVE.usable or not runs(request.param):
        pytest.skip(NATIVE.reason or f"this CPU does not run {request.param}")
    monkeypatch.setenv("FASTAV_CPU", request.param)
    monkeypatch.setenv("FASTAV_BACKEND", "native")
    return fastav.ops


@pytest.mark.parametrize("form", FORMS)
def test_every_path_is_right(native, form):
    op, given = FORMS[form]
    check_values(op, getattr(native, op), given)
    check_gradients(op, getattr(native, op), given)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_path_rounds_once(native, op, dtype):
    check_rounding(op, getattr(native, op), PLAIN[op], dtype)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_saturated_softmax_leaves_no_gradient(native, norm):
    # One token: p is 1 whatever the query, and dq is 0. What is left is the rounding of one number times the row.
    draw = Draw(21)
    given = cast({"taps": [draw(3, 1, 96)], "queries": [draw(4, 96)], "scale": 100.0, "norm": norm}, torch.float32)
    found = gradients(native.distill, given, {"queries"}, [draw(3, 4, 96).float()])["queries[0]"]
    # delta and g z differ by the rounding of sums of 96 numbers, ~1e-6, which scale = 100 makes 1e-4 where nothing
    # takes it out; with that it is the rounding of their difference times scale, 1e-4 x 1e-7, for 3 samples.
    assert found.abs().max() < 1e-9


@pytest.mark.parametrize("width", [3, 24, 96, 1536])
def test_equal_channels_are_normalised_to_zero(native, width):
    rows = (5 + Draw(22)(1, 50, 1)).expand(1, 50, width).float()
    out = native.distill([rows], [Draw(23)(2, width).float()])[0]
    assert torch.equal(out, torch.zeros_like(out))


def distill_call(batch, tokens, width=24, rows=5, mask=False):
    draw = Draw(11)
    given = {
        "taps": [draw(batch, tokens, width), draw(batch, 7, 10)],
        "queries": [draw(rows, width), draw(rows, 10)],
        "weight": [draw(width), draw(10)],
        "bias": [draw(width), draw(10)],
    }
    if mask:
        given["key_mask"] = [draw.mask(batch, tokens), draw.mask(batch, 7)]
        given["key_mask"][0][:, 600:1700] = False  # whole cuts without a key
    return given


def project_call(rows):
    draw = Draw(12)
    return {
        "tokens": [draw(rows, d) for d in (70, 10)],
        "weights": [draw(d, e) for d, e in ((70, 33), (10, 130))],
        "biases": [draw(33), draw(130)],
        "residuals": [draw(33), draw(rows, 1)],
        "norm": "layer",
        "activation": "gelu",
    }


def fuse_call(batch, gate):
    draw = Draw(13)
    given = {"tokens": [draw(batch, 9, d) for d in (70, 10, 65)], "weights": [draw(d, 35) for d in (70, 10, 65)]}
    return given | ({"gate": draw(gate)} if gate else {})


def inject_call(batch, tokens, keys):
    draw = Draw(14)
    shapes = [(tokens, 24), (17, 65)]
    return {"features": [draw(batch, n, d) for n, d in shapes]} | {
        name: [draw(batch, keys, d) for _, d in shapes] for name in ("keys", "values")
    }


# Enough of everything that work is cut: few long samples, many short ones, more rows than a block has.
LARGE = {
    "distill-cuts": ("distill", distill_call(1, 3001)),
    "distill-masked-cuts": ("distill", distill_call(2, 2300, mask=True)),
    "distill-runs": ("distill", distill_call(67, 101)),
    "distill-wide": ("distill", distill_call(2, 110, width=1100, rows=37)),
    "project-rows": ("project", project_call(1000)),
    "fuse-rows": ("fuse", fuse_call(90, None)),
    "fuse-gated": ("fuse", fuse_call(90, 35)),
    "inject-cuts": ("inject", inject_call(1, 3001, 5)),
    "inject-keys": ("inject", inject_call(3, 200, 130)),
    "orthogonality-samples": ("orthogonality", {"tokens": [Draw(15)(50, 33, 70), Draw(16)(50, 33, 9)]}),
}


@pytest.mark.parametrize("case", LARGE)
def test_every_path_is_right_where_work_is_cut(native, case):
    op, given = LARGE[case]
    check_values(op, getattr(native, op), given)
    check_gradients(op, getattr(native, op), given, layout="sliced")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(native, threads, case, dtype):
    op, given = LARGE[case]
    given = cast(given, dtype)
    upstream = [g.to(o.dtype) for g, o in zip(upstream_for(oracle(op, cast(given, torch.float64)), "contiguous", 3),
                                              flat(getattr(native, op)(**given)), strict=True)]  # fmt: skip
    found = []
    for count in (1, 2, 5):
        threads(count)
        outputs = flat(call(getattr(native, op), given, set())[0])
        found.append([*outputs, *gradients(getattr(native, op), given, float_names(given), upstream).values()])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_native
def test_a_path_that_is_not_there_is_refused_in_every_mode(monkeypatch):
    monkeypatch.setenv("FASTAV_CPU", "avx1024")
    for backend in ("auto", "native"):
        monkeypatch.setenv("FASTAV_BACKEND", backend)
        with pytest.raises(RuntimeError, match=r"FASTAV_CPU is 'avx1024', wanted one of .*portable"):
            fastav.ops.distill([torch.zeros(1, 2, 3)], [torch.zeros(1, 3)])


GROWTH = """
import resource, sys, torch, fastav
tokens = int(sys.argv[1])
torch.set_num_threads(1)
x = torch.randn(1, 1, 32)
def step(tokens):
    long = [x.expand(2, tokens, 32)]  # any number of tokens in the memory of one
    q = torch.randn(4, 32, requires_grad=True)
    fastav.ops.distill(long, [q])[0].sum().backward()
step(1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(tokens)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def growth(tokens):
    """Kilobytes by which a step with so many tokens raises the peak of a process."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tokens)],
        capture_output=True, text=True, check=True, cwd=Path(fastav.__file__).parents[1],
        env=os.environ | {"FASTAV_BACKEND": "native"},
    )  # fmt: skip
    return int(done.stdout) * (1 if sys.platform == "linux" else 1 / 1024)


@needs_native
def test_distill_takes_no_memory_that_grows_with_the_tokens():
    # 2 samples x 400,000 tokens x 32 channels are 102 MB in float32, and one score a token is 3.2 MB; a cut's sums are
    # 2 kB. What is measured moves by some pages of the allocator.
    assert growth(400_000) < 1500
