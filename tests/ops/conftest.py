import importlib
import os

import pytest

# Where a backend was chosen for this run, the definition has nothing to do with it.
ROOMS = ["reference", "ops"] if os.environ.get("FASTAV_BACKEND", "auto") in ("auto", "reference") else ["ops"]


@pytest.fixture(params=ROOMS)
def room(request):
    """Both rooms that hold the five ops under the same signatures: the definition, and what users call."""
    return importlib.import_module(f"fastav.{request.param}")


@pytest.fixture
def ops():
    return importlib.import_module("fastav.ops")
