"""Layer-centric distillation: every tap's tokens distilled into its meta-tokens by two branches in one attention."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastav import ops
from fastav.adapters.config import AdapterConfig
from fastav.adapters.groups import group_widths
from fastav.adapters.rows import below_each_other, cut_rows, hand_out, heads_below, heads_beside
from fastav.standardization import TapStandardization


class PoolingWeights(NamedTuple):
    """What pooling reads beside the taps, made of weights alone; one entry a tap in each list.

    Attributes:
        queries: (R, D_l), or (B, R, D_l) where they differ per sample.
        weight: (D_l,), the affine part of the taps' norm, or None.
        bias: (D_l,), likewise.
    """

    queries: Sequence[Tensor]
    weight: Sequence[Tensor] | None
    bias: Sequence[Tensor] | None

    def of(self, first: int, count: int) -> "PoolingWeights":
        """Those of some consecutive taps."""
        span = slice(first, first + count)
        return PoolingWeights(self.queries[span], self.weight and self.weight[span], self.bias and self.bias[span])

    def for_two(self) -> "tuple[PoolingWeights, PoolingWeights]":
        """The same for two uses, with one launch for the sums of their gradients."""
        if self.weight is None or self.bias is None:
            return self, self
        count = len(self.weight)
        one, other = hand_out([*self.weight, *self.bias], 2)
        return tuple(self._replace(weight=use[:count], bias=use[count:]) for use in (one, other))  # type: ignore

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [tensor for part in self if part is not None for tensor in part]


class LayerCentricDistillation(nn.Module):
    """``T_l = P_l + A_l``, with ``residual`` ``T_l = m_l + P_l + A_l``, for the taps of all layers of both modalities.

    With ``m_l`` (K, D_l) the meta-tokens of tap ``x_l``, ``d = rank / heads`` and ``tau = D_l ** -0.5`` everywhere:

    - preservation ``P_l = distill(x_l, m_l)``, a convex mix of the frozen tokens;
    - adaptation ``A_l = act(concat_h distill(x_l, q_h) W^v_h) W^o``, with ``q_h = m_l W^q_h W^k_h^T``: attention whose
      key and value projections are absorbed into the queries and the pooled rows. ``W^o`` starts at zero, unless
      nothing else would be left.

    Both branches' queries are rows of one ``distill`` call, and no loop over layers launches anything: it only cuts
    views. (The first training batches, in which the taps are measured, are the exception.)

    A forward has four steps, so that taps can be pooled while others are still being computed: :meth:`measure`,
    :meth:`prepare`, :meth:`pool` and :meth:`finish`.

    Args:
        widths: D of each tap.
        groups: for each tap, the index of the parameters it uses; taps of one group have one width.
        config: the method's options.
    """

    owns: Tensor
    identity: Tensor
    standardization: TapStandardization | None

    def __init__(self, widths: Sequence[int], groups: Sequence[int], config: AdapterConfig) -> None:
        super().__init__()
        self.config, self.groups = config, tuple(groups)
        self.adapt, self.preserve = "adaptation" in config.branches, "preservation" in config.branches
        sizes = group_widths(groups, widths)
        k, r = config.num_tokens, config.rank
        # Queries of unit scale: with tau they give scores of unit variance on standardised taps.
        self.meta_tokens = matrices(sizes, lambda d: torch.randn(k, d))
        if self.adapt:
            self.to_query = matrices(sizes, lambda d: torch.randn(d, r) * d**-0.5)
            self.to_key = matrices(sizes, lambda d: torch.randn(r, d) * (r // config.heads) ** -0.5)
            self.to_value = matrices(sizes, lambda d: torch.randn(d, r) * d**-0.5)
            alone = not (self.preserve or config.residual)
            self.to_output = matrices(sizes, lambda d: torch.randn(r, d) * r**-0.5 if alone else torch.zeros(r, d))
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
        self.measure(taps)
        weights, outward = self.prepare()
        return self.finish(self.pool(taps, weights), outward)

    @property
    def measuring(self) -> bool:
        """Whether :meth:`measure` has work to do, for which all taps must be there before the first is pooled."""
        return self.training and self.standardization is not None and self.standardization.measuring

    def measure(self, taps: Sequence[Tensor]) -> None:
        """Take a batch of all taps into the standardisation's statistics, while these are measured."""
        if self.measuring and self.standardization is not None:
            self.standardization.measure(taps)

    def prepare(self) -> tuple[PoolingWeights, list[Tensor] | None]:
        """Make what one forward needs of the weights alone.

        Returns:
            What :meth:`pool` reads, with R = K rows of preservation, then H K of adaptation, as far as they run; and
            the matrices of :meth:`finish`: (r, D_l), with ``residual`` above the meta-tokens, (r + K, D_l), or None
            where there are none.
        """
        weight, bias = (None, None) if self.standardization is None else self.standardization()
        meta = iter(hand_out(self.of_taps(self.meta_tokens), self.preserve + self.adapt + self.config.residual))
        preserving = next(meta) if self.preserve else None
        adapting = self._adaptation_queries(next(meta)) if self.adapt else None
        outward = self.of_taps(self.to_output) if self.adapt else None
        added = next(meta) if self.config.residual else None
        queries, outward = below_each_other((preserving, adapting), (outward, added))
        return PoolingWeights(queries, weight, bias), outward

    def pool(self, taps: Sequence[Tensor], weights: PoolingWeights) -> list[Tensor]:
        """Pool taps (B, N_l, D_l), all or some with the weights of these, into (B, R, D_l) each."""
        queries, weight, bias = weights
        return ops.distill(taps, queries, norm=self.config.norm, eps=self.config.eps, weight=weight, bias=bias)

    def finish(self, pooled: Sequence[Tensor], outward: Sequence[Tensor] | None) -> list[Tensor]:
        """From all taps' pooled rows (B, R, D_l) to one (B, K, D_l) tensor each."""
        preserved, adapted = pooled, pooled
        if self.adapt and self.preserve:
            preserved, adapted = cut_rows(pooled, self.config.num_tokens)
        if outward is None:
            return list(preserved)
        inner = None
        if self.config.residual:
            # The identity lays the meta-tokens, the last rows of `outward`, under every sample.
            inner = self.identity.expand(len(pooled), len(pooled[0]), -1, -1)
        if self.adapt:
            values = self.of_taps(self.to_value)
            stacked = ops.project(adapted, values, activation=self.config.activation, stack=True)
            # Every head's rows met every head's columns; each keeps its own.
            inner = heads_beside(stacked, self.owns, inner)  # (L, B, K, r), with the identity (L, B, K, r + K)
        assert inner is not None  # as `outward` is not
        return ops.project(inner.unbind(0), outward, residuals=preserved if self.preserve else None)

    def _adaptation_queries(self, meta: Sequence[Tensor]) -> list[Tensor]:
        """``q_h = m W^q_h W^k_h^T`` of all heads: (H K, D_l) for each tap.

        Columns that are not head h's are zeroed between the two products: the same numbers as a product a head.
        """
        low = ops.project(meta, self.of_taps(self.to_query), stack=True)  # (L, K, r)
        return ops.project(heads_below(low, self.owns).unbind(0), self.of_taps(self.to_key))

    def of_taps(self, parameters: nn.ParameterList) -> list[Tensor]:
        """For each tap, the one of its group."""
        return [parameters[group] for group in self.groups]


def matrices(sizes: Sequence[int], draw: Callable[[int], Tensor]) -> nn.ParameterList:
    """One parameter for each width, as ``draw`` makes it."""
    return nn.ParameterList(nn.Parameter(draw(d)) for d in sizes)
