"""``fastav train``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastav.training.arguments import train_config, train_parser
from fastav.training.cli import plainly
from fastav.training.module import AudioVisualModule
from fastav.training.run import set_up_training

_OPTIMISTIC = (
    "note: the test split chooses the epoch. Published figures of the peers did the same; such a score is optimistic, "
    "and is not to be compared with one whose epoch was chosen on validation"
)


def main(arguments: Sequence[str]) -> int:
    """Train a run."""
    with plainly():
        parser = train_parser(arguments)
        config = train_config(parser.parse_args(list(arguments)))
        training = set_up_training(config)
    if training.trainer.is_global_zero:
        if config.select_on_test:
            print(_OPTIMISTIC, file=sys.stderr)
        print(describe_parameters(training.module))
        trainer = training.trainer
        print(f"on {trainer.world_size} x {trainer.strategy.root_device.type}, precision {trainer.precision}")
    record = training.fit()
    if training.trainer.is_global_zero:
        print(
            f"best {record['chosen_by']}: {record['score']:.4f}, epoch {record['epoch'] + 1} of "
            f"{config.optimizer.epochs}; adapter and head are in {training.folder.best}"
        )
    return 0


def describe_parameters(module: AudioVisualModule) -> str:
    """How many parameters train, how many there are, and the share, in a line."""
    adapter, everything = module.adapter.get_nb_trainable_parameters()
    head = [parameter.numel() for parameter in module.task.parameters()]
    own = sum(parameter.numel() for parameter in module.task.parameters() if parameter.requires_grad)
    everything += sum(head)
    return (
        f"trainable: {adapter + own:,} of {everything:,} parameters, {100 * (adapter + own) / everything:.2f} %: "
        f"{adapter:,} of the adapter, {own:,} of the head"
    )
