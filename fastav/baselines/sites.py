"""Where adapters stand in a block: beside its attention and its MLP, or behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastav.backbones import FrozenBackbone
from fastav.backbones.blocks import block_class
from fastav.baselines.base import blocks_of


class Site(NamedTuple):
    """One residual branch ``x + branch(x)`` of a block.

    Attributes:
        entry: the module that is called with x; the block itself where it is "".
        exit: the module whose output is added to x.
    """

    entry: str
    exit: str


_TIMM = (Site("norm1", "drop_path1"), Site("norm2", "drop_path2"))
_HUGGING_FACE = (Site("layernorm_before", "attention"), Site("layernorm_after", "mlp"))
#: The two branches of each known block.
_SITES = {
    "vision_transformer.Block": _TIMM,
    "eva.EvaBlock": _TIMM,
    "beit.Block": _TIMM,
    "swin_transformer.SwinTransformerBlock": _TIMM,
    # Norms come last in each branch.
    "swin_transformer_v2.SwinTransformerV2Block": (Site("", "drop_path1"), Site("mlp", "drop_path2")),
    "modeling_vit.ViTLayer": _HUGGING_FACE,
    "modeling_audio_spectrogram_transformer.ASTLayer": _HUGGING_FACE,
    "modeling_clap.ClapAudioLayer": (Site("layernorm_before", "drop_path"), Site("layernorm_after", "output")),
    "modeling_whisper.WhisperEncoderLayer": (
        Site("self_attn_layer_norm", "self_attn"),
        Site("final_layer_norm", "fc2"),
    ),
}


def branch_sites(block: nn.Module) -> tuple[Site, Site]:
    """The attention's and the MLP's branch of a block.

    Raises:
        ValueError: a block whose branches are not known.
    """
    name = block_class(block)[1]
    if name not in _SITES:
        raise ValueError(
            f"adapters cannot be put into {type(block).__name__}: only blocks of {', '.join(_SITES)} are known"
        )
    return _SITES[name]


def check_runs_once(backbone: FrozenBackbone) -> None:
    """Look whether timm runs its blocks once more in backward, when hooks in them are gone.

    Raises:
        ValueError: it does.
    """
    if any(getattr(module, "grad_checkpointing", False) for module in backbone.module.modules()):
        raise ValueError(
            f"{type(backbone.module).__name__} checkpoints gradients, and adapters inside of its blocks are gone when "
            f"these run again; call its set_grad_checkpointing(False), and give gradient_checkpointing=True instead"
        )


def blocks_with_branches(backbone: FrozenBackbone) -> list[nn.Module]:
    """The tapped blocks, if adapters can be put into all of them.

    Raises:
        ValueError: a block whose branches are not known, or blocks that are checkpointed.
    """
    check_runs_once(backbone)
    blocks = blocks_of(backbone)
    for block in blocks:
        branch_sites(block)
    return blocks


@contextmanager
def inserted(
    blocks: Sequence[nn.Module],
    added: Callable[[int, int, Tensor], Tensor],
    *,
    behind: bool = False,
    only: nn.Module | None = None,
) -> Iterator[None]:
    """While it lasts, add to both branches of some blocks what a function makes of what goes into them, or comes out.

    Args:
        blocks: the blocks.
        added: is given a block's number, 0 for its attention or 1 for its MLP, and what goes into that, (B, N, D);
            gives what is to be added to what comes out, (B, N, D). It is called before the branch runs.
        behind: whether it is given what comes out instead, after the branch has run and before that goes onto x.
        only: the one of these blocks that will run, if the others do not.

    Raises:
        ValueError: a block whose branches are not known.
    """
    sites = [branch_sites(block) for block in blocks]
    with ExitStack() as hooks:
        for number, (block, pair) in enumerate(zip(blocks, sites, strict=True)):
            if only not in (None, block):
                continue
            for which, site in enumerate(pair):
                entry, exit_ = block.get_submodule(site.entry), block.get_submodule(site.exit)
                made = partial(_of_tokens, partial(added, number, which))
                if behind:
                    hooks.callback(exit_.register_forward_hook(partial(_leave, made)).remove)
                    continue
                waiting: list[Tensor] = []
                enter = partial(_enter, waiting, made)
                hooks.callback(entry.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(exit_.register_forward_hook(partial(_leave, partial(_kept, waiting))).remove)
        yield


@contextmanager
def inserted_around(blocks: Sequence[nn.Module], added: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, add to some blocks' outputs what a function makes of their inputs, and then of that sum.

    Args:
        blocks: the blocks, which run one after the other.
        added: is given tokens (B, N, D), first before the block runs; gives what is to be added, (B, N, D).
    """
    made, waiting = partial(_of_tokens, added), list[Tensor]()
    with ExitStack() as hooks:
        for block in blocks:
            enter = partial(_enter, waiting, made)
            hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            for more in (partial(_kept, waiting), made):
                hooks.callback(block.register_forward_hook(partial(_leave, more)).remove)
        yield


def _of_tokens(added: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What is made of tokens; maps (B, H, W, D) are tokens in rows."""
    return added(x.flatten(1, -2))


def _kept(waiting: list[Tensor], _: Tensor) -> Tensor:
    """What was made when the branch began, whatever came out of it."""
    return waiting.pop()


def _enter(waiting: list[Tensor], made: Callable[[Tensor], Tensor], module: nn.Module, args: Any, kwargs: Any) -> None:
    """Keep what is to be added to the branch that is about to run."""
    waiting.append(made(args[0] if args else kwargs["hidden_states"]))


def _leave(made: Callable[[Tensor], Tensor], module: nn.Module, args: Any, output: Any) -> Any:
    """Add to what came out of a branch."""
    found = output[0] if isinstance(output, tuple) else output
    more = found + made(found).reshape(found.shape)
    return (more, *output[1:]) if isinstance(output, tuple) else more
