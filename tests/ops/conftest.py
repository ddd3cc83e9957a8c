import importlib

import pytest


@pytest.fixture(params=["reference", "ops"])
def room(request):
    """Both rooms that hold the five ops under the same signatures: the definition, and what users call."""
    return importlib.import_module(f"fastav.{request.param}")


@pytest.fixture
def ops():
    return importlib.import_module("fastav.ops")
