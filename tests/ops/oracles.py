"""The five ops in NumPy and float64: loops and einsum, written from the formulas of the design, without torch.

Arguments are those of the public ops with arrays for tensors. Nothing here is fast or clever; that is the point.
"""

import math

import numpy as np


def normalize(x, norm, eps, weight=None, bias=None):
    """Rows of x, normalised over the last axis, times weight plus bias."""
    x = np.asarray(x, dtype=np.float64)
    if norm == "layer":
        mean = np.einsum("...d->...", x)[..., None] / x.shape[-1]
        variance = np.einsum("...d,...d->...", x - mean, x - mean)[..., None] / x.shape[-1]
        x = (x - mean) / np.sqrt(variance + eps)
    elif norm == "rms":
        x = x / np.sqrt(np.einsum("...d,...d->...", x, x)[..., None] / x.shape[-1] + eps)
    elif norm != "none":
        raise AssertionError(norm)
    if weight is not None:
        x = x * weight
    if bias is not None:
        x = x + bias
    return x


def softmax(scores):
    """Softmax of a vector, by its definition."""
    powers = [math.exp(score - max(scores)) for score in scores]
    return np.array(powers) / math.fsum(powers)


def distill(taps, queries, *, scale=None, norm="layer", eps=1e-6, weight=None, bias=None, key_mask=None):
    """Pool every tap with its query rows: p = softmax_n(tau q . x_n), o = sum_n p_n x_n."""
    pooled = []
    for g, (tap, query) in enumerate(zip(taps, queries, strict=True)):
        clips, tokens, width = tap.shape
        tau = width**-0.5 if scale is None else scale
        x = normalize(tap, norm, eps, None if weight is None else weight[g], None if bias is None else bias[g])
        out = np.zeros((clips, query.shape[-2], width))
        for b in range(clips):
            rows = query[b] if query.ndim == 3 else query
            keys = [n for n in range(tokens) if key_mask is None or key_mask[g][b, n]]
            if not keys:
                continue
            for r, row in enumerate(rows):
                p = softmax([tau * float(np.dot(row, x[b, n])) for n in keys])
                for share, n in zip(p, keys, strict=True):
                    out[b, r] += share * x[b, n]
        pooled.append(out)
    return pooled


def activate(y, activation):
    """None, exact gelu or relu."""
    if activation is None:
        return y
    if activation == "relu":
        return np.where(y > 0, y, 0.0)
    assert activation == "gelu"
    return y * 0.5 * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(y / math.sqrt(2.0)))


def project(tokens, weights, biases=None, *, norm="none", eps=1e-6, activation=None, residuals=None, stack=False):
    """activation(norm(tokens) weights + biases) + residuals, list item by list item."""
    projected = []
    for i, (token, weight) in enumerate(zip(tokens, weights, strict=True)):
        y = np.einsum("...md,de->...me", normalize(token, norm, eps), weight)
        if biases is not None:
            y = y + biases[i]
        y = activate(y, activation)
        if residuals is not None:
            y = y + residuals[i]
        projected.append(y)
    return np.stack(projected) if stack else projected


def fuse(tokens, weights, biases=None, *, norm="none", eps=1e-6, gate=None, gate_kind=None):
    """Bring the tokens of all layers to one width and mix them over the layers."""
    y = np.stack(project(tokens, weights, biases, norm=norm, eps=eps))
    layers, clips, rows, width = y.shape
    if gate is None:
        return np.einsum("lbkw->bkw", y) / layers
    assert gate.ndim == 1
    assert gate.shape[0] in (layers, width)
    if gate_kind is None:
        assert layers != width
        gate_kind = "layer" if gate.shape[0] == layers else "token"
    fused = np.zeros((clips, rows, width))
    for b in range(clips):
        for k in range(rows):
            if gate_kind == "layer":
                logits = [float(g) for g in gate]
            else:
                logits = [float(np.dot(y[layer, b, k], gate)) / math.sqrt(width) for layer in range(layers)]
            for alpha, layer in zip(softmax(logits), range(layers), strict=True):
                fused[b, k] += alpha * y[layer, b, k]
    return fused


def inject(features, keys, values, *, scale=None, norm="layer", eps=1e-6):
    """features + softmax(scale norm(features) keys^T) values, token by token."""
    injected = []
    for feature, key, value in zip(features, keys, values, strict=True):
        clips, tokens, width = feature.shape
        tau = width**-0.5 if scale is None else scale
        x = normalize(feature, norm, eps)
        out = np.array(feature, dtype=np.float64)
        for b in range(clips):
            for n in range(tokens):
                p = softmax([tau * float(np.dot(x[b, n], row)) for row in key[b]])
                out[b, n] += np.einsum("m,md->d", p, value[b])
        injected.append(out)
    return injected


def orthogonality(tokens):
    """Mean over taps and samples of ||Tn Tn^T - I||_F^2 / (K (K - 1)); 0 for K = 1."""
    terms = []
    for tap in tokens:
        for sample in np.asarray(tap, dtype=np.float64):
            rows = len(sample)
            if rows == 1:
                terms.append(0.0)
                continue
            unit = np.stack([row / math.sqrt(float(np.dot(row, row))) for row in sample])
            off = np.einsum("id,jd->ij", unit, unit) - np.eye(rows)
            terms.append(float(np.einsum("ij,ij->", off, off)) / (rows * (rows - 1)))
    return np.array(math.fsum(terms) / len(terms))
