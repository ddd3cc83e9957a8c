"""How many device launches the side branch takes, forward and backward: as few for 36 taps as for 3."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastav import FrozenBackbone, MettleAdapter, MettleConfig, MoLTAdapter, MoLTConfig

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
    "fastav::inject": 1,
    "fastav::inject_backward": 2,
    "fastav::orthogonality": 1,
    "fastav::orthogonality_backward": 1,
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
    kind = {MettleConfig: MettleAdapter, MoLTConfig: MoLTAdapter}[type(config)]
    adapter = kind(trunk(visual, 16), trunk(audio, 8), config).eval()  # eval: nothing is measured any more
    taps = [torch.randn(6, 9, 16) for _ in range(visual)], [torch.randn(6, 7, 8) for _ in range(audio)]
    with Launches() as forward:
        out = adapter.forward_taps(*taps, num_segments=3)
    parts = [out.visual, out.audio, *out.features] + [out.aux_loss] * out.aux_loss.requires_grad
    gradients = [torch.ones_like(part) for part in parts]
    with Launches() as backward:
        torch.autograd.backward(parts, gradients)
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


MOLT = [
    *OF_BOTH_BRANCHES[:9],  # the uni-modal tokens
    "fastav::project",  # to the common width
    "aten::mm",  # each layer's summary of the other modality
    "fastav::project",  # the queries that depend on it
    "fastav::distill",
    "fastav::project",  # to the common width
    "aten::stack",  # both kinds
    "aten::mul",  # the routers' matrices, for the mean over tokens
    "aten::bmm",
    "aten::_softmax",  # the router
    "aten::bmm",  # routed
    "aten::baddbmm",
    "aten::_softmax",  # token fusion
    "aten::bmm",  # fused
    "fastav::orthogonality",
    "aten::mul",  # its weight
]


def test_molt_launches_these():
    forward, backward = counted(MoLTConfig(), 2, 2)
    assert forward == MOLT
    assert len(forward) == 24
    assert Counter(backward) == {
        "fastav::project_backward": 11,  # seven calls, four of them with a norm or an activation
        "fastav::distill_backward": 4,
        "fastav::orthogonality_backward": 1,
        "aten::bmm": 8,
        "aten::mm": 1,
        "aten::_softmax_backward_data": 2,
        "aten::clone": 1,  # of the fused tokens' gradient, which bmm leaves in the order of its own batch
        "aten::add": 4,  # what is used twice: y^U, both kinds together (twice), the routed tokens
        "aten::sum": 2,  # of the gates and of the routers over what they are spread to
        "aten::stack": 4,
        "aten::mul": 4,
        "aten::cat": 3,
        "aten::addcmul": 1,
        "aten::_foreach_add": 2,  # of the meta-tokens' two gradients, of those of weight and bias
    }
    assert len(backward) == 48


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        (MoLTConfig(), 24, 48),  # the design's targets
        (MoLTConfig(router="hard"), 27, 48),
        (MoLTConfig(standardize=False), 23, 44),
        (MoLTConfig(inject_stages="stages"), 30, 63),
        (MettleConfig(inject_stages="stages"), 18, 35),
        (MettleConfig(inject_stages="stages", layers="all"), 18, 35),
    ],
    ids=str,
)
def test_other_methods_launch_as_often_for_any_number_of_taps(options, forward, backward):
    few, many = (counted(options, *taps) for taps in ((2, 2), (20, 16)))
    assert few[0] == many[0]
    assert Counter(few[1]) == Counter(many[1])
    assert (len(few[0]), len(few[1])) == (forward, backward)
