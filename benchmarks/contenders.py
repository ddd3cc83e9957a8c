"""Who is timed: fastav's ops, and the ways there are to compute the same with PyTorch and xformers.

``attend`` is no op of fastav's but what :func:`plain.attend` is: attention that projects every token. Ours of it is
``distill`` between two products with the projections, see :func:`absorbed`.

Each contender is a function with an op's arguments, all of them by name, and its results. :class:`UnavailableError`
says why one cannot serve here; one that serves but is wrong is a failure, see :mod:`benchmarks.correctness`.
"""

import importlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import plain
from fastav import backends, ops, reference

Contender = Callable[..., Any]


class UnavailableError(Exception):
    """A contender cannot serve on this machine or these shapes; the message says why."""


def eager(op: str) -> Contender:
    """The definition, in PyTorch's eager mode, in float32 throughout."""
    return getattr(reference, op)


def plain_eager(op: str) -> Contender:
    """What people write: layer by layer, in the taps' dtype."""
    return getattr(plain, op)


def definition(op: str) -> Contender:
    """What an op is defined by: the reference, or the literal PyTorch form of what is no op of fastav's."""
    return getattr(reference, op, None) or getattr(plain, op)


def compiled(op: str, function: Contender | None = None) -> Contender:
    """The same-dtype PyTorch, or another ``function``, under ``torch.compile``."""
    if not torch.cuda.is_available() and shutil.which("g++") is None:
        raise UnavailableError("torch.compile needs a C++ compiler on the CPU; there is no g++")
    return torch.compile(function or getattr(plain, op), fullgraph=True, dynamic=False)


def ours(op: str) -> Contender:
    """:mod:`fastav.ops` with the best backend of the device."""
    return getattr(ops, op)


def vector_path() -> str:
    """The vector path that fastav's native CPU kernels take now, nothing where they cannot serve."""
    return torch.ops.fastav_native.path() if backends()["native"].usable else ""


@contextmanager
def forced(path: str) -> Iterator[None]:
    """Let the native CPU kernels take a vector path, one of ``"avx512"``, ``"avx2"`` and ``"portable"``.

    Raises:
        UnavailableError: they cannot serve, or not on this path.
    """
    with patch.dict(os.environ, FASTAV_CPU=path):
        try:
            found = vector_path()
        except RuntimeError as error:
            raise UnavailableError(str(error).splitlines()[0]) from error
        if found != path:
            raise UnavailableError(f"the native kernels do not take the vector path {path} here")
        yield


def absorbed(taps, queries, keys, values, *, scale, norm, eps) -> list[Tensor]:
    """What ``plain.attend`` computes, with the projections taken to the queries and the pooled rows."""
    scaled = [q * (q.shape[-1] ** -0.5 if scale is None else scale) for q in queries]
    pooled = ops.distill(taps, list(ops.project(scaled, keys)), scale=1.0, norm=norm, eps=eps)
    return list(ops.project(pooled, values))


def attend_sdpa(taps, queries, keys, values, *, scale, norm, eps) -> list[Tensor]:
    """``plain.attend`` with ``scaled_dot_product_attention``."""
    outputs = []
    for x, q, w_k, w_v in zip(taps, queries, keys, values, strict=True):
        x_hat = plain.normalize(x, norm, eps)
        k, v = F.linear(x_hat, w_k.to(x.dtype)), x_hat @ w_v.to(x.dtype)
        rows = q.to(x.dtype).expand(len(x), -1, -1)
        outputs.append(F.scaled_dot_product_attention(rows, k, v, scale=scale).to(q.dtype))
    return outputs


def folded(taps, queries, *, weight, bias, key_mask, scale, norm, eps) -> list[Tensor]:
    """No normalised tap is ever written: the norm is folded into scores and sums, the affine into queries and outputs.

    The most that PyTorch's own operators can do, which read a tap five times forward. The variance is a difference of
    means, and two reductions, because ``torch.var_mean`` is a hundred times slower on a CPU.
    """
    outputs = []
    for i, (x, q) in enumerate(zip(taps, queries, strict=True)):
        d = x.shape[-1]
        mean = x.sum(-1, keepdim=True, dtype=torch.float32) / d
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / d
        inverse = torch.rsqrt(square - mean.square() + eps)
        rows = (q if weight is None else q * weight[i]) * (d**-0.5 if scale is None else scale)
        rows = rows.to(x.dtype)
        p = ((x @ rows.mT - mean * rows.float().sum(-1)) * inverse).softmax(1) * inverse  # (B, N, R)
        pooled = p.to(x.dtype).mT @ x - (p * mean).sum(1)[..., None]
        outputs.append((pooled if weight is None else pooled * weight[i] + bias[i]).to(q.dtype))
    return outputs


def widened(function: Contender) -> Contender:
    """The same after the taps are brought to float32: on a CPU the faster way for many 16-bit operators."""

    def run(taps, *lists, **arguments) -> Any:
        return function([x.float() for x in taps], *lists, **arguments)

    return run


def _keys(taps: Sequence[Tensor], weight: Any, bias: Any, norm: str, eps: float) -> list[Tensor]:
    affine = zip(weight or [None] * len(taps), bias or [None] * len(taps), strict=True)
    return [plain.normalize(x, norm, eps, w, b) for x, (w, b) in zip(taps, affine, strict=True)]


def sdpa(taps, queries, *, weight, bias, key_mask, scale, norm, eps) -> list[Tensor]:
    """``scaled_dot_product_attention`` over each normalised tap."""
    outputs = []
    for x, q in zip(_keys(taps, weight, bias, norm, eps), queries, strict=True):
        rows = q.to(x.dtype).expand(len(x), -1, -1)
        outputs.append(F.scaled_dot_product_attention(rows, x, x, scale=scale).to(q.dtype))
    return outputs


def stacked(taps, queries, *, weight, bias, key_mask, scale, norm, eps) -> list[Tensor]:
    """Taps of one size stacked, then one batched computation a size, as Liger does with a list of layers."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, x in enumerate(taps):
        groups[tuple(x.shape)].append(i)
    outputs: list[Any] = [None] * len(taps)
    for members in groups.values():
        x = plain.normalize(torch.stack([taps[i] for i in members]), norm, eps)
        if weight is not None:
            x = x * torch.stack([weight[i] for i in members]).to(x.dtype)[:, None, None]
            x = x + torch.stack([bias[i] for i in members]).to(x.dtype)[:, None, None]
        q = torch.stack([queries[i] for i in members]).to(x.dtype)
        q = q if q.ndim == 4 else q[:, None]
        p = (q @ x.mT * (x.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1)
        for i, rows in zip(members, (p @ x).unbind(0), strict=True):
            outputs[i] = rows.to(queries[i].dtype)
    return outputs


def block_diagonal(op: str) -> Contender:
    """The attention of xformers over all samples of all taps of one width, concatenated, with a block-diagonal mask."""
    try:
        attention = importlib.import_module("xformers.ops")
        masks = importlib.import_module("xformers.ops.fmha.attn_bias")
    except (ImportError, RuntimeError, OSError) as error:
        raise UnavailableError(f"xformers cannot be imported: {str(error).splitlines()[0]}") from error

    @cache  # it is the same in every step of a training
    def masked(queries: tuple[int, ...], keys: tuple[int, ...]) -> Any:
        return masks.BlockDiagonalMask.from_seqlens(queries, keys)

    def run(taps, queries, *, weight, bias, key_mask, scale, norm, eps) -> list[Tensor]:
        groups: dict[int, list[int]] = defaultdict(list)
        for i, x in enumerate(taps):
            groups[x.shape[-1]].append(i)
        keys, outputs = _keys(taps, weight, bias, norm, eps), [taps[0]] * len(taps)
        for members in groups.values():
            rows = [queries[i].to(taps[i].dtype).expand(len(taps[i]), -1, -1) for i in members]
            q, k = (
                torch.cat([t.flatten(0, 1) for t in ts])[None, :, None] for ts in (rows, [keys[i] for i in members])
            )
            mask = masked(
                tuple(r.shape[1] for r in rows for _ in r), tuple(taps[i].shape[1] for i in members for _ in taps[i])
            )
            try:
                found = attention.memory_efficient_attention(q, k, k, attn_bias=mask, scale=scale)
            except (NotImplementedError, ValueError) as error:
                raise UnavailableError(f"xformers cannot serve: {_reasons(str(error))}") from error
            for i, part in zip(members, found[0, :, 0].split([len(r) * r.shape[1] for r in rows]), strict=True):
                outputs[i] = part.view(len(taps[i]), -1, part.shape[-1]).to(queries[i].dtype)
        return outputs

    return run


def _reasons(message: str) -> str:
    """What xformers says of each of its operators, on one line."""
    lines = [line.strip() for line in message.splitlines()]
    start = next((i for i, line in enumerate(lines) if "is not supported because" in line), 0)
    return "; ".join(lines[start:])


#: By op and name. What is built when a contender is asked for may raise :class:`UnavailableError`.
CONTENDERS: dict[str, dict[str, Callable[[str], Contender]]] = {
    op: {"ours": ours, "eager": eager, "plain": plain_eager, "compile": compiled}
    for op in ("distill", "project", "fuse", "inject", "orthogonality")
}
CONTENDERS["distill"] |= {
    "sdpa": lambda op: sdpa,
    "stacked": lambda op: stacked,
    "folded": lambda op: folded,
    "folded compile": lambda op: compiled(op, folded),
    "xformers": block_diagonal,
}
CONTENDERS["attend"] = {
    "ours": lambda op: absorbed,
    "literal": plain_eager,
    "literal sdpa": lambda op: attend_sdpa,
    "literal compile": compiled,
}
#: Further ones for taps in 16 bits.
WIDENED: dict[str, dict[str, Callable[[str], Contender]]] = {
    "distill": {
        "compile in float32": lambda op: compiled(op, widened(plain.distill)),
        "folded compile in float32": lambda op: compiled(op, widened(folded)),
        "folded in float32": lambda op: widened(folded),
        "sdpa in float32": lambda op: widened(sdpa),
    }
}
