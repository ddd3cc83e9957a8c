import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch

import fastav
from fastav.ops import _backends
from fastav_build import NoCompilerError, find_compiler

NAMES = ("reference", "native", "triton")


@pytest.fixture(autouse=True)
def own_choice():
    """Leave the choice as the environment makes it."""
    yield
    fastav.set_backend(os.environ.get("FASTAV_BACKEND", "auto"))


def pool():
    generator = torch.Generator().manual_seed(0)
    tap = torch.randn(2, 65, 96, generator=generator)
    (pooled,) = fastav.ops.distill([tap], [torch.randn(3, 96, generator=generator)])
    return pooled


def run(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "FASTAV_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


POOL = """
    import fastav, torch
    assert fastav.ops.distill([torch.ones(1, 4, 8)], [torch.ones(2, 8)])[0].shape == (1, 2, 8)
"""


def test_backends_says_what_is_usable_and_why_not():
    known = fastav.backends()
    assert set(known) == set(NAMES)
    assert known["reference"].usable
    for name, status in known.items():
        assert isinstance(status.usable, bool)
        assert bool(status.reason) != status.usable, f"{name}: {status}"


@pytest.mark.parametrize("name", NAMES)
def test_an_explicit_choice_serves_or_fails_loudly(name):
    status = fastav.backends()[name]
    on_cpu = status.usable and (not status.devices or "cpu" in status.devices)
    if on_cpu:
        fastav.set_backend("reference")
        expected = pool()
        fastav.set_backend(name)
        # Unit normal tokens and float32: two orders of adding 65 * 96 numbers of size ~1.
        assert (pool() - expected).abs().max() <= 1e-5
    else:
        with pytest.raises(RuntimeError) as caught:
            _choose_and_pool(name)
        assert name in str(caught.value)
        assert (status.reason or "cpu") in str(caught.value)
        assert torch.isfinite(pool()).all()  # the refused choice is not half made


def _choose_and_pool(name):
    fastav.set_backend(name)
    pool()


@pytest.mark.parametrize("name", ["cuda", "", "Reference", None])
def test_unknown_names(name):
    with pytest.raises((ValueError, TypeError)) as caught:
        fastav.set_backend(name)
    for known in (repr(name), "auto", *NAMES):
        assert known in str(caught.value)


def test_auto_is_always_there():
    fastav.set_backend("reference")
    expected = pool()
    fastav.set_backend("auto")
    assert (pool() - expected).abs().max() <= 1e-5  # as above


def test_the_environment_variable_chooses():
    done = run(POOL, FASTAV_BACKEND="reference")
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_in_the_environment_variable():
    done = run(POOL, FASTAV_BACKEND="fastest")
    assert done.returncode != 0
    for word in ("ValueError", "FASTAV_BACKEND", "'fastest'", *NAMES):
        assert word in done.stderr.splitlines()[-1]


def test_the_environment_variable_cannot_choose_what_cannot_serve():
    refused = {n: s for n, s in fastav.backends().items() if not (s.usable and (not s.devices or "cpu" in s.devices))}
    if not refused:
        pytest.skip("every backend serves the CPU here")
    name, status = next(iter(refused.items()))
    done = run(POOL, FASTAV_BACKEND=name)
    assert done.returncode != 0
    assert "RuntimeError" in done.stderr
    assert (status.reason or "cpu") in done.stderr
    # set_backend goes before the variable.
    code = f"import fastav\nfastav.set_backend('auto')\n{textwrap.dedent(POOL)}"
    assert run(code, FASTAV_BACKEND=name).returncode == 0


def has_compiler():
    try:
        return bool(find_compiler())
    except NoCompilerError:
        return False


def test_native_serves_where_there_is_a_compiler():
    status = fastav.backends()["native"]
    assert status.devices == ("cpu",)
    if status.usable:
        assert status.detail.startswith(("vector path avx512;", "vector path avx2;", "vector path portable;"))
    else:
        assert not has_compiler(), status.reason
        assert "not built" in status.reason
        assert status.detail == ""


def test_native_that_is_not_built_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(_backends._Native, "library", tmp_path / "libfastav_native.so")
    (tmp_path / "native.txt").write_text("there is no C++ compiler; install GCC or Clang\n")
    status = fastav.backends()["native"]
    assert (status.usable, status.detail) == (False, "")
    for part in ("not built", "there is no C++ compiler; install GCC or Clang", "make native", "'reference'"):
        assert part in status.reason
    with pytest.raises(RuntimeError, match="there is no C\\+\\+ compiler"):
        fastav.set_backend("native")
    fastav.set_backend("reference")
    expected = pool()
    fastav.set_backend("auto")
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert torch.equal(pool(), expected)  # the reference serves then


def test_native_that_nobody_tried_to_build(tmp_path, monkeypatch):
    monkeypatch.setattr(_backends._Native, "library", tmp_path / "libfastav_native.so")
    reason = fastav.backends()["native"].reason
    assert "not built" in reason
    assert "make native" in reason


def test_native_that_cannot_be_loaded_says_why(tmp_path, monkeypatch):
    library = tmp_path / "libfastav_native.so"
    library.write_text("not a library")
    monkeypatch.setattr(_backends._Native, "library", library)
    (tmp_path / "native.txt").write_text("built by GCC 1.2 against PyTorch 3.4")
    status = fastav.backends()["native"]
    assert not status.usable
    for part in ("built by GCC 1.2 against PyTorch 3.4", torch.__version__, str(library), "install fastav again"):
        assert part in status.reason
    assert re.search("invalid ELF header|file too short|not a mach-o file", status.reason), status.reason


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler here, so no native kernels")
def test_a_wrong_vector_path_is_an_error_in_every_mode(backend):
    done = run(POOL, FASTAV_BACKEND=backend, FASTAV_CPU="sse9", TRITON_INTERPRET="0")  # which would serve `auto`
    assert done.returncode != 0
    assert "RuntimeError" in done.stderr
    assert "FASTAV_CPU" in done.stderr
    assert "'sse9'" in done.stderr


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler here, so no native kernels")
def test_the_vector_path_is_chosen_anew():
    done = run("""
        import os, fastav
        os.environ["FASTAV_CPU"] = "portable"
        assert fastav.backends()["native"].detail.startswith("vector path portable;")
        os.environ["FASTAV_CPU"] = "sse9"
        status = fastav.backends()["native"]
        assert not status.usable and "'sse9'" in status.reason, status
        del os.environ["FASTAV_CPU"]
        assert fastav.backends()["native"].usable
    """)
    assert done.returncode == 0, done.stderr


def test_import_loads_no_library():
    done = run("import fastav, torch\nassert not torch.ops.loaded_libraries, torch.ops.loaded_libraries")
    assert done.returncode == 0, done.stderr


def test_import_needs_neither_extras_nor_a_device():
    done = run("""
        import sys
        import torch

        class Absent:
            names = {"timm", "transformers", "triton", "torchaudio", "torchvision", "matplotlib", "safetensors",
                     "lightning", "pytorch_lightning", "torchmetrics"}
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in self.names:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        for name in [n for n in sys.modules if n.split(".")[0] in Absent.names]:
            del sys.modules[name]
        sys.meta_path.insert(0, Absent())

        def touched(*args, **kwargs):
            raise AssertionError("import fastav touched a device")

        torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = touched
        torch.cuda.get_device_properties = torch.cuda.current_device = touched

        import fastav
        assert not Absent.names & {n.split(".")[0] for n in sys.modules}
    """)
    assert done.returncode == 0, done.stderr
