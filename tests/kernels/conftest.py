"""The kernels run here on CPU tensors in Triton's interpreter, which has to be asked for before Triton is imported."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def backend():
    import fastav

    fastav.set_backend("triton")
    yield
    fastav.set_backend(os.environ.get("FASTAV_BACKEND", "auto"))


@pytest.fixture
def ops():
    from fastav import ops

    return ops


@pytest.fixture
def launches():
    """The names of the kernels launched in a test so far."""
    from fastav.kernels import launch

    names = []

    def note(this):
        names.append(this.name)

    launch.hooks.append(note)
    yield names
    launch.hooks.remove(note)
