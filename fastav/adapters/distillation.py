"""Layer-centric distillation: every tap's tokens distilled into its meta-tokens by two branches in one attention."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastav import ops
from fastav.adapters.config import MettleConfig
from fastav.adapters.groups import group_widths
from fastav.adapters.statistics import TapStandardization


class LayerCentricDistillation(nn.Module):
    """``T_l = P_l + A_l``, with ``residual`` ``T_l = m_l + P_l + A_l``, for the taps of all layers of both modalities.

    With ``m_l`` (K, D_l) the meta-tokens of tap ``x_l``, ``d = rank / heads`` and ``tau = D_l ** -0.5`` everywhere:

    - preservation ``P_l = distill(x_l, m_l)``, a convex mix of the frozen tokens;
    - adaptation ``A_l = act(concat_h distill(x_l, q_h) W^v_h) W^o``, with ``q_h = m_l W^q_h W^k_h^T``: attention whose
      key and value projections are absorbed into the queries and the pooled rows. ``W^o`` starts at zero.

    Both branches' queries are rows of one ``distill`` call, and no loop over layers launches anything: it only cuts
    views. (The first training batches, in which the taps are measured, are the exception.)

    Args:
        widths: D of each tap.
        groups: for each tap, the index of the parameters it uses; taps of one group have one width.
        config: the method's options.
    """

    owns: Tensor
    identity: Tensor
    standardization: TapStandardization | None

    def __init__(self, widths: Sequence[int], groups: Sequence[int], config: MettleConfig) -> None:
        super().__init__()
        self.config, self.widths, self.groups = config, tuple(widths), tuple(groups)
        sizes = group_widths(groups, widths)
        k, r = config.num_tokens, config.rank
        # Queries of unit scale: with tau they give scores of unit variance on standardised taps.
        self.meta_tokens = _matrices(sizes, lambda d: torch.randn(k, d))
        if "adaptation" in config.branches:
            self.to_query = _matrices(sizes, lambda d: torch.randn(d, r) * d**-0.5)
            self.to_key = _matrices(sizes, lambda d: torch.randn(r, d) * (r // config.heads) ** -0.5)
            self.to_value = _matrices(sizes, lambda d: torch.randn(d, r) * d**-0.5)
            self.to_output = _matrices(sizes, lambda d: torch.zeros(r, d))
            # Head h owns columns h d ... (h + 1) d of the rank: (H, 1, r) with ones there.
            owns = torch.eye(config.heads).repeat_interleave(r // config.heads, 1)[:, None]
            self.register_buffer("owns", owns, persistent=False)
        self.register_buffer("identity", torch.eye(k), persistent=False)
        self.standardization = None
        if config.standardize:
            self.standardization = TapStandardization(
                widths, groups, config.norm, config.eps, config.standardize_batches
            )

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Distil taps (B, N_l, D_l) into one (B, K, D_l) tensor each."""
        config, k = self.config, self.config.num_tokens
        adapt, preserve = "adaptation" in config.branches, "preservation" in config.branches
        weight, bias = None, None
        if self.standardization is not None:
            if self.training and self.standardization.measuring:
                self.standardization.measure(taps)
            weight, bias = self.standardization()

        # Every use of the meta-tokens cuts them anew, so that their gradients meet in one sum and not in one a tap.
        flat = torch.cat([m.flatten() for m in self._of_taps(self.meta_tokens)])
        queries = [[m] for m in self._cut_meta(flat)] if preserve else [[] for _ in self.groups]
        outward: list[list[Tensor]] = [[] for _ in self.groups]
        if adapt:
            for rows, q in zip(queries, self._adaptation_queries(self._cut_meta(flat)), strict=True):
                rows.append(q)
            for rows, w in zip(outward, self._of_taps(self.to_output), strict=True):
                rows.append(w)
        if config.residual:
            for rows, m in zip(outward, self._cut_meta(flat), strict=True):
                rows.append(m)
        below = _below_each_other([rows for rows in queries + outward if rows])
        rows_of_taps, outward_rows = below[: len(taps)], below[len(taps) :]
        # (B, R, D_l), R = K for preservation + H K for adaptation
        pooled = ops.distill(taps, rows_of_taps, norm=config.norm, eps=config.eps, weight=weight, bias=bias)

        preserved, adapted = pooled, pooled
        if adapt and preserve:
            cut = _CutRows.apply(k, *pooled)
            preserved, adapted = cut[: len(taps)], cut[len(taps) :]
        inner: list[Tensor] = []
        if adapt:
            inner.extend(self._adapted(adapted))
        if config.residual:
            # The identity lays the meta-tokens, the last rows of `outward`, under every sample.
            inner.append(self.identity.expand(len(taps), len(pooled[0]), k, k))
        if not inner:
            return list(preserved)
        residuals = preserved if preserve else None
        return ops.project(torch.cat(inner, -1).unbind(0), outward_rows, residuals=residuals)

    def _cut_meta(self, flat: Tensor) -> list[Tensor]:
        k = self.config.num_tokens
        return [rows.view(k, -1) for rows in flat.split([k * width for width in self.widths])]

    def _adaptation_queries(self, meta: list[Tensor]) -> list[Tensor]:
        """``q_h = m W^q_h W^k_h^T`` of all heads: (H K, D_l) for each tap.

        Columns that are not head h's are zeroed between the two products: the same numbers as a product a head.
        """
        low = ops.project(meta, self._of_taps(self.to_query), stack=True)  # (L, K, r)
        by_head = (low[:, None] * self.owns).flatten(1, 2)  # (L, H K, r)
        return ops.project(by_head.unbind(0), self._of_taps(self.to_key))

    def _adapted(self, pooled: Sequence[Tensor]) -> Sequence[Tensor]:
        """``act((rows of head h) W^v_h)`` for each head: L x (B, H K, D_l) -> H views (L, B, K, d)."""
        heads, k = self.config.heads, self.config.num_tokens
        values = ops.project(pooled, self._of_taps(self.to_value), activation=self.config.activation, stack=True)
        # Every head's rows met every head's columns; each keeps its own.
        own = values.unflatten(-1, (heads, -1)).unflatten(2, (heads, k))  # (L, B, H, K, H, d)
        return own.diagonal(dim1=2, dim2=4).unbind(-1)

    def _of_taps(self, parameters: nn.ParameterList) -> list[Tensor]:
        return [parameters[group] for group in self.groups]


def _matrices(sizes: Sequence[int], draw) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(draw(d)) for d in sizes)


def _below_each_other(groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Lay each group's matrices of one width below each other, all groups in one copy.

    Rows are contiguous, so that one flat concatenation of everything, cut between groups, is all of them at once.
    """
    pieces = [matrix.flatten() for group in groups for matrix in group]
    sizes = [sum(matrix.numel() for matrix in group) for group in groups]
    flat = torch.cat(pieces).split(sizes)
    return [rows.view(-1, group[0].shape[-1]) for rows, group in zip(flat, groups, strict=True)]


class _CutRows(torch.autograd.Function):
    """Cut every tap's rows after the k-th: two tuples of views.

    Autograd's own slices would cost three launches a tap backward; this lays all gradients side by side in one copy.
    """

    @staticmethod
    def forward(ctx, k, *pooled):
        ctx.shapes = [rows.shape[1:] for rows in pooled]
        return *(rows[:, :k] for rows in pooled), *(rows[:, k:] for rows in pooled)

    @staticmethod
    def backward(ctx, *grads):
        count = len(ctx.shapes)
        side_by_side = [grads[i + half].flatten(1) for i in range(count) for half in (0, count)]
        columns = torch.cat(side_by_side, 1).split([rows * width for rows, width in ctx.shapes], 1)
        return None, *(column.unflatten(1, shape) for column, shape in zip(columns, ctx.shapes, strict=True))
