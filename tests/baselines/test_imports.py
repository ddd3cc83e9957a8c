"""What the rooms below the adapters import, and what that imports, by their source."""

import ast
from pathlib import Path

import pytest

import fastav

ROOT = Path(fastav.__file__).parent


def source(module):
    """The file of one of fastav's modules, None for what is no module."""
    path = ROOT.joinpath(*module.split(".")[1:])
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found else None


def imported(path):
    """Names of fastav's modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("fastav.") and source(name)}


def known(room):
    """All that a room imports, directly or by way of what it imports; the package's front door does not count."""
    found, waiting = set(), [ROOT / room / file.name for file in (ROOT / room).glob("*.py")]
    while waiting:
        new = imported(waiting.pop()) - found
        found |= new
        waiting += [source(name) for name in new]
    return found


@pytest.mark.parametrize("room", ["backbones", "baselines", "data"])
def test_rooms_below_the_adapters_know_none(room):
    names = known(room)
    assert f"fastav.{room}" in {".".join(name.split(".")[:2]) for name in names}  # it was looked at
    assert not [name for name in names if name.startswith("fastav.adapters")]


def test_adapters_and_baselines_standardise_alike():
    assert "fastav.standardization" in known("baselines") & known("adapters")
