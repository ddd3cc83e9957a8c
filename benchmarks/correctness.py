"""Whether a result is right: against the reference in float64, with same-dtype PyTorch as the yardstick."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.cases import Case
from benchmarks.contenders import Contender, definition
from benchmarks.layouts import random

#: How much more than same-dtype PyTorch a result of this dtype may lose: two orders of the same sums err independently,
#: and the largest errors of two such draws seldom lie this far apart. In 16 bits most of an error is the last rounding,
#: which all share. In float32 it is the sums alone: of twelve draws of a gate's gradient, 20 numbers, ours lost 0.8 to
#: 3.5 times what PyTorch did.
FACTORS = {torch.float64: 6.0, torch.float32: 6.0, torch.bfloat16: 3.0, torch.float16: 3.0}


class WrongError(AssertionError):
    """A result is further from the truth than it may be."""


@dataclass(frozen=True)
class Answer:
    """Results and gradients of one call, by label such as ``"output 3"`` or ``"queries[3]"``."""

    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, function: Contender, case: Case, arguments: dict[str, Any], upstream: Sequence[Tensor]) -> "Answer":
        """Call ``function`` and, unless there is no ``upstream``, differentiate it for the lists the case wants."""
        leaves: dict[str, Tensor] = {}
        given: dict[str, Any] = {}
        for name, value in arguments.items():
            entries = [value] if isinstance(value, Tensor) else value
            if entries is not None and name in case.wanted and upstream:
                entries = [t.detach().requires_grad_() for t in entries]
                leaves |= {f"{name}[{i}]": t for i, t in enumerate(entries)}
            given[name] = entries[0] if isinstance(value, Tensor) else entries
        outputs = as_list(function(**given, **case.settings))
        found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
        if upstream:
            cast = [g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True)]
            found |= dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), cast), strict=True))
        return cls(found)


def as_list(outputs: Any) -> list[Tensor]:
    """The outputs of any op as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def widened(arguments: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The same numbers in another dtype."""

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() else t

    return {
        name: cast(value) if isinstance(value, Tensor) else value and [cast(t) for t in value]
        for name, value in arguments.items()
    }


@dataclass(frozen=True)
class Truth:
    """What a case's results and gradients should be, and how far off they may be.

    Attributes:
        arguments: the case's arguments.
        upstream: gradients of a loss for its outputs.
        exact: the reference's answer in float64 on the same numbers.
        allowed: for each label, the largest error allowed: :data:`FACTORS` times the largest error of same-dtype
            PyTorch, written plainly or as the reference has it, and one rounding of the result. Errors count as shares
            of the largest value, and of a list the entry that is furthest off: one small entry alone may be lucky.
    """

    case: Case
    arguments: dict[str, Any]
    upstream: list[Tensor]
    exact: Answer
    allowed: dict[str, float]

    @classmethod
    def of(cls, case: Case, device: torch.device | str, seed: int = 0) -> "Truth":
        """Draw random arguments and find out."""
        new = random(device, seed)
        arguments = case.tensors(new)
        function = definition(case.op)
        outputs = as_list(function(**arguments, **case.settings))
        upstream = case.upstream(outputs, new)
        exact = Answer.of(function, case, widened(arguments), [g.double() for g in upstream])
        yardsticks = [Answer.of(f, case, arguments, upstream) for f in (getattr(plain, case.op), function)]
        for label, target in exact.tensors.items():
            if not all(torch.isfinite(x).all() for x in (target, *(answer.tensors[label] for answer in yardsticks))):
                raise WrongError(f"{case.name}: the yardstick's {label} is not finite, which any answer would pass")
        sizes = {label: target.abs().max().item() for label, target in exact.tensors.items()}
        shares: dict[str, float] = {}
        for label, target in exact.tensors.items():
            off = max(_error(answer.tensors[label], target) for answer in yardsticks)
            shares[_list_of(label)] = max(shares.get(_list_of(label), 0.0), off / sizes[label] if sizes[label] else off)
        allowed = {}
        for label, size in sizes.items():
            dtype = yardsticks[0].tensors[label].dtype
            rounding = torch.finfo(dtype).eps / 2 * size
            allowed[label] = FACTORS[dtype] * shares[_list_of(label)] * size + rounding
        return cls(case, arguments, upstream, exact, allowed)

    def check(self, function: Contender, *, slack: float = 1.0) -> float:
        """Raise :class:`WrongError` unless values and gradients are right; the worst share of what is allowed.

        Args:
            function: the contender.
            slack: what is allowed is multiplied by this, for contenders that round more often by design.
        """
        answer = Answer.of(function, self.case, self.arguments, self.upstream)
        worst = 0.0
        for label, target in self.exact.tensors.items():
            actual = answer.tensors[label]
            if actual.shape != target.shape or not torch.isfinite(actual).all():
                raise WrongError(f"{self.case.name}: {label} has shape {tuple(actual.shape)} or is not finite")
            error, allowed = _error(actual, target), self.allowed[label] * slack
            if not error <= allowed:
                raise WrongError(f"{self.case.name}: {label} is off by {error:.3g}, allowed {allowed:.3g}")
            worst = max(worst, error / allowed if allowed else 0.0)
        return worst


def _list_of(label: str) -> str:
    """``"output"`` of ``"output 3"``, ``"queries"`` of ``"queries[3]"``."""
    return re.split(r"[ \[]", label, maxsplit=1)[0]


def _error(actual: Tensor, target: Tensor) -> float:
    return (actual.double() - target).abs().max().item()
