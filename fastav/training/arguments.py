"""Flags and configuration files, both made from one set of dataclasses by jsonargparse."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastav.adapters import adapter_class
from fastav.tasks.task import Task
from fastav.training.config import (
    AudioConfig,
    DataConfig,
    OptimizerConfig,
    ProfileConfig,
    TrainConfig,
    TrainerConfig,
    VisualConfig,
)

try:
    import yaml
    from jsonargparse import ArgumentParser, Namespace
except ImportError as error:
    raise ImportError('the command line needs jsonargparse: pip install "fastav[training]"') from error

#: The nested dataclasses, by field.
SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "visual": VisualConfig,
    "audio": AudioConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
}


def task_class(name: str) -> type[Task]:
    """A task by its name on the command line.

    Raises:
        ValueError: there is no such task.
    """
    from fastav import tasks

    classes = {
        cls.name: cls
        for cls in vars(tasks).values()
        if isinstance(cls, type) and issubclass(cls, Task) and cls is not Task
    }
    if name not in classes:
        raise ValueError(f"there is no task {name!r}; choose one of {sorted(classes)}")
    return classes[name]


def head_options(task: type[Task]) -> list[str]:
    """Those of a task's arguments that the user chooses: they have defaults; the others follow from the rest."""
    parameters = inspect.signature(task).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty and p.name not in DERIVED]


#: Arguments of tasks that follow from the data set and the backbones, though they have defaults.
DERIVED = ("size",)


def train_parser(arguments: Sequence[str]) -> ArgumentParser:
    """The parser of ``fastav train``; which adapter and head it has flags for depends on the ``arguments`` themselves.

    Raises:
        ValueError: there is no such method or task, or a configuration file that cannot be read.
    """
    method, task = _chosen(arguments)
    parser = ArgumentParser(
        prog="fastav train",
        description="Train an adapter and a head beside two frozen backbones. --task and --method decide which "
        "--head.* and --adapter.* there are: give them with --help too.",
    )
    parser.add_argument("--config", action="config", help="a file with any of these, as --print_config writes it")
    parser.add_class_arguments(TrainConfig, skip={"adapter", "head", *SECTIONS})
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    parser.add_class_arguments(adapter_class(method).config_class, "adapter")
    if task is not None:
        cls = task_class(task)
        derived = set(inspect.signature(cls).parameters) - set(head_options(cls))
        parser.add_class_arguments(cls, "head", skip=derived)
    if task == "segmentation":
        parser.set_defaults({"adapter.inject_stages": "stages"})  # the decoder reads what is injected
    return parser


def train_config(values: Namespace) -> TrainConfig:
    """The dataclasses, from what the parser gives."""
    plain = values.as_dict()
    plain.pop("config", None)
    sections = {name: section(**plain.pop(name)) for name, section in SECTIONS.items()}
    return TrainConfig(**plain, **sections)


def profile_parser() -> ArgumentParser:
    """The parser of ``fastav profile``."""
    parser = ArgumentParser(
        prog="fastav profile",
        description="Say what training costs on two backbones: memory, time and parameters of the adapters and of the "
        "peers' methods, each checked first, with one head.",
    )
    parser.add_argument("--config", action="config", help="a file with any of these, as --print_config writes it")
    parser.add_class_arguments(ProfileConfig, skip={"visual", "audio"})
    for name in ("visual", "audio"):
        parser.add_class_arguments(SECTIONS[name], name)
    return parser


def run_parser(arguments: Sequence[str], command: str, description: str, *sections: str) -> ArgumentParser:
    """The parser of a command that works on a run, whose folder comes first in the ``arguments``.

    It has flags for some ``sections`` of the configuration, with the run's own values as defaults.

    Raises:
        ValueError: the first argument is no run's folder, or a flag.
    """
    from fastav.training.run_folder import RunFolder

    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        raise ValueError(f"the run's folder comes first, as in: fastav {command} RUN {arguments[0]}")
    parser = ArgumentParser(prog=f"fastav {command}", description=description)
    parser.add_argument("run", type=str, help="the folder that fastav train wrote; comes first")
    for name in sections:
        parser.add_class_arguments(SECTIONS[name], name)
    if arguments and not arguments[0].startswith("-"):
        folder = RunFolder(arguments[0])
        config = folder.read_config()
        try:
            parser.set_defaults({name: config.get(name, {}) for name in sections})
        except KeyError as error:
            raise ValueError(f"{folder.config} is not what this version of fastav writes: {error}") from error
    return parser


def _chosen(arguments: Sequence[str]) -> tuple[str, str | None]:
    """The method and the task that the arguments, or the files they name, ask for; later ones count."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--config", "--method", "--task"):
        peek.add_argument(flag, action=_InOrder, dest="given", default=[])
    known, _ = peek.parse_known_args([argument for argument in arguments if argument not in ("-h", "--help")])
    chosen: dict[str, Any] = {"method": "mettle", "task": None}
    for flag, value in known.given:
        entries = read_yaml(value) if flag == "--config" else {flag.removeprefix("--"): value}
        chosen |= {key: entry for key, entry in entries.items() if key in chosen}
    return chosen["method"], chosen["task"]


class _InOrder(argparse.Action):
    """Keeps flags and their values as they came, in one list for all flags of this action."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.given = [*namespace.given, (option_string, values)]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A configuration file's entries.

    Raises:
        ValueError: it is not there, or is no mapping.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the configuration {path} cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"the configuration {path} holds {type(entries).__name__}, wanted entries as in task: parsing")
    return entries
