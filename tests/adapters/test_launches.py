"""How many device launches the side branch takes, forward and backward: as few for 36 taps as for 3."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastav import FrozenBackbone, MettleAdapter, MettleConfig

# What one call of an op launches where one kernel serves all taps: one forward, and backward a second to sum what
# the first left in parts. `project` needs the second only for what a norm or an activation asks for anew.
LAUNCHES = {
    "fastav::project": 1,
    "fastav::project_backward": 1,
    "fastav::project_backward with norm or activation": 2,
    "fastav::distill": 1,
    "fastav::distill_backward": 2,
    "fastav::fuse": 1,
    "fastav::fuse_backward": 2,
}


# Arithmetic of dtypes, and the cuts of an op's results, which are views that autograd need not know of.
NOTHING = (
    torch.ops.aten.promote_types.default,
    torch.ops.aten.unsafe_split_with_sizes.default,
    torch.ops.aten._unsafe_view.default,
)


class Launches(TorchDispatchMode):
    """Records every operator but views and the arithmetic of dtypes, as often as it launches something."""

    def __init__(self):
        super().__init__()
        self.list = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not operator.is_view and operator not in NOTHING:
            self.list += [operator._schema.name] * launches(operator._schema, args)
        return operator(*args, **(kwargs or {}))


def launches(schema, args):
    name = schema.name
    if name == "fastav::project_backward":
        given = dict(zip([argument.name for argument in schema.arguments], args, strict=True))
        if given["norm"] != "none" or given["activation"] is not None:
            name += " with norm or activation"
    return LAUNCHES[name] if name.startswith("fastav::") else 1


def trunk(taps, width):
    return FrozenBackbone(
        nn.Sequential(*(nn.Linear(width, width) for _ in range(taps))), ["*"], example_input=torch.zeros(1, 5, width)
    )


def counted(config, visual, audio):
    """Launches of a training step's side branch, forward and backward, over so many taps of each modality."""
    torch.manual_seed(0)
    adapter = MettleAdapter(trunk(visual, 16), trunk(audio, 8), config).eval()  # eval: nothing is measured any more
    taps = [torch.randn(6, 5, 16) for _ in range(visual)], [torch.randn(6, 7, 8) for _ in range(audio)]
    with Launches() as forward:
        out = adapter.forward_taps(*taps, num_segments=3)
    gradients = [torch.ones_like(out.visual), torch.ones_like(out.audio)]
    with Launches() as backward:
        torch.autograd.backward([out.visual, out.audio], gradients)
    assert all(p.grad is not None for p in adapter.parameters() if p.requires_grad)
    return forward.list, backward.list


OF_BOTH_BRANCHES = [
    "aten::_foreach_addcmul",  # weight and bias of the standardisation
    "fastav::project",  # m W^q
    "aten::mul",  # each head's columns
    "fastav::project",  # ... (W^k)^T
    "aten::cat",  # queries of both branches
    "fastav::distill",
    "fastav::project",  # W^v
    "aten::cat",  # heads side by side
    "fastav::project",  # W^o
    "fastav::fuse",
    "fastav::fuse",
    "aten::new_zeros",  # aux_loss
]


def test_the_default_launches_these():
    forward, backward = counted(MettleConfig(), 2, 1)
    assert forward == OF_BOTH_BRANCHES
    assert len(forward) == 12
    # Not in order: two branches of a graph may run in either.
    assert Counter(backward) == {
        "fastav::fuse_backward": 4,
        "fastav::project_backward": 5,  # four calls, that of W^v with its activation
        "fastav::distill_backward": 2,
        "aten::stack": 2,  # of the gradients of the heads side by side, and of the heads below each other
        "aten::mul": 2,  # each head's columns; the gradient of gain
        "aten::cat": 3,  # of the pooled rows' gradients, of each head's columns, of those of weight and bias
        "aten::addcmul": 1,  # the gradient of gain
        "aten::_foreach_add": 1,  # of the meta-tokens' two gradients
    }
    assert len(backward) == 20


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        ({}, 12, 20),
        ({"residual": True}, 12, 21),
        ({"standardize": False}, 11, 17),
        ({"branches": ("preservation",)}, 5, 9),
        ({"branches": ("adaptation",)}, 11, 18),
        ({"branches": ("preservation",), "residual": True}, 6, 11),
        ({"branches": ("adaptation",), "residual": True}, 12, 19),
        ({"heads": 4, "norm": "rms", "activation": None}, 12, 19),
    ],
    ids=str,
)
def test_launches_are_the_same_for_any_number_of_taps(options, forward, backward):
    few, many = (counted(MettleConfig(**options), *taps) for taps in ((2, 1), (20, 16)))
    assert few[0] == many[0]
    assert Counter(few[1]) == Counter(many[1])
    assert (len(few[0]), len(few[1])) == (forward, backward)
    assert forward <= 12  # the design's targets
    assert backward <= 24
