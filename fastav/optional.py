"""Optional packages, imported where they are used, so that ``import fastav`` needs none of them."""

from importlib import import_module
from typing import Any


def load_optional(name: str, *, by: str, extra: str) -> Any:
    """Import an optional package; one that was built for another torch fails with OSError or RuntimeError.

    Args:
        name: the module's dotted name.
        by: what needs it, in the plural.
        extra: the extra of fastav that brings it.

    Raises:
        ImportError: the package does not load; names the extra.
    """
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        package = name.partition(".")[0]
        raise ImportError(f'{by} need {package}, which does not load: pip install "fastav[{extra}]"') from error
