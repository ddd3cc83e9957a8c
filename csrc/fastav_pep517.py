"""How pip builds fastav: setuptools, and the native CPU library where there is a C++ compiler.

The build backend and the two setuptools commands that pyproject.toml names. An install never fails for want of the
library: it is then pure Python, and ``fastav.backends()["native"].reason`` says why.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

from fastav_build import LIBRARY, TORCH, BuildError, NoCompilerError, build, find_compiler, find_torch

__all__ = [
    "BdistWheel",
    "BuildPy",
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What a wheel needs beyond pyproject.toml: PyTorch's headers, if they would serve and are not here yet."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for an editable install."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch()]


def _torch() -> Sequence[str]:
    try:
        find_compiler()
    except NoCompilerError:
        return []
    return [] if find_torch() else [f"torch>={TORCH[0]}.{TORCH[1]}"]


class BuildPy(build_py):
    """Adds the library, or the note on why there is none, to the package.

    Not as an extension module: that is one Python's, and must not fail. Not as package data: those are listed before.
    """

    def run(self) -> None:
        """Build the package, then the library into it; into the checkout's own for an editable install."""
        super().run()
        package = "fastav.ops"
        folder = self.get_package_dir(package) if self.editable_mode else Path(self.build_lib, *package.split("."))
        try:
            build(Path(folder))
        except BuildError as error:
            line = "*" * 100
            print(f"{line}\nfastav is installed WITHOUT its native CPU kernels:\n{error}\n{line}", file=sys.stderr)


class BdistWheel(bdist_wheel):
    """Tags the wheel for the platform if the library is in it, and for any if not; never for one Python."""

    def run(self) -> None:
        """Build first: what comes of it decides."""
        self.run_command("build")
        library = Path(self.get_finalized_command("build").build_lib, "fastav", "ops", LIBRARY)
        self.root_is_pure = not library.exists()
        self.distribution.has_ext_modules = lambda: not self.root_is_pure
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform tag."""
        return "py3", "none", super().get_tag()[2]
