"""The command line: ``fastav train | evaluate | predict | visualize | profile | check-data | env``."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from fastav import __version__
from fastav.data.errors import DataError
from fastav.training.errors import RunError

#: What the commands do, in the order of the help; each is a module of this package with a function ``main``.
COMMANDS = {
    "train": ("train_command", "train an adapter and a task's head beside two frozen backbones"),
    "evaluate": ("evaluate_command", "score a run on a split"),
    "predict": ("predict_command", "write a run's predictions for a split or for one video"),
    "visualize": ("visualize_command", "show where each query token looks, in the frames and in the sound"),
    "profile": ("profile_command", "say what training costs on two backbones: memory and time of every method"),
    "check-data": ("check_command", "say what of a data set is there, and what is missing or broken"),
    "env": ("environment", "say what fastav runs on: versions, devices, backends, optional packages"),
}


class UserError(Exception):
    """What the user asked for cannot be; the message says what to do. Shown without a traceback."""


@contextmanager
def plainly() -> Iterator[None]:
    """Around what depends on the user's words alone, not on training code: its errors are the user's."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise UserError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command and what follows it; None takes the process' own.

    Returns:
        The exit status: 0 if all went well, 1 if ``check-data`` or ``profile`` found something wrong, 2 for a
        mistake of the user's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0 if given else 2
    if given[0] == "--version":
        print(__version__)
        return 0
    if given[0] not in COMMANDS:
        print(f"fastav: there is no command {given[0]!r}\n\n{_help()}", file=sys.stderr)
        return 2
    command = given[0]
    _quieten()
    try:
        with plainly():  # of the imports, for a package that is missing
            run: Callable[[Sequence[str]], int] = import_module(f"fastav.training.{COMMANDS[command][0]}").main
        return run(given[1:])
    except (UserError, DataError, RunError) as error:
        print(f"fastav {command}: {_last_words(error)}", file=sys.stderr)
        return 2


def _quieten() -> None:
    """Silence what Lightning tells of itself, and its warnings of what is meant to be so here."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # the frozen backbones
        r"It is recommended to use .*sync_dist",  # the scores are of all processes already
        r".*isinstance\(treespec, LeafSpec\)",
        r"The ``compute`` method of metric \w+ was called before",  # where all clips are left out, which is counted
    ):
        warnings.filterwarnings("ignore", message)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: fastav COMMAND ...", "", *lines, "", "`fastav COMMAND --help` says more, `fastav --version` which."]
    )


def _last_words(error: Exception) -> str:
    """The message, of an error of a loader's worker without the traceback that comes with it."""
    words = str(error)
    return words.strip().splitlines()[-1].partition(": ")[2] if words.startswith("Caught ") else words
