"""The native kernels under sanitizers, without Python and PyTorch: tests/csrc/driver.cpp on each vector path.

A plain run takes the widest path of this CPU and the portable one under AddressSanitizer and UBSan. ``make sanitize``
takes every path, optimised as the library is, ThreadSanitizer and valgrind too.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastav_build import SOURCES, X86_64, NoCompilerError, Torch, find_compiler, steps

DRIVER = Path(__file__).with_name("driver.cpp")
STOP = ("-g", "-fno-sanitize-recover=all")
#: By what is watched: more flags for kernels and driver, and how the driver is run.
WAYS = {
    "memory": (("-O1", *STOP, "-fsanitize=address,undefined", "-DFASTAV_GUARDED"), ()),
    "memory-optimised": ((*STOP, "-fsanitize=address,undefined"), ()),
    "threads": (("-O1", *STOP, "-fsanitize=thread"), ()),
    "valgrind": (("-O2", "-g"), ("valgrind", "--quiet", "--error-exitcode=1")),
}
#: What the kernels of a path need, as Linux names it.
NEEDED = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}, "avx2": {"avx2", "fma"}, "portable": set()}

try:
    COMPILER = find_compiler()
    absent = ""
except NoCompilerError as error:
    COMPILER = None
    absent = str(error)


def usable_paths():
    """The vector paths that are compiled here and that this CPU runs, the widest first."""
    cpu = Path("/proc/cpuinfo")
    has = set(re.findall(r"\w+", cpu.read_text())) if cpu.exists() else set()
    return [path for path in (COMPILER.paths if COMPILER else X86_64) if NEEDED[path] <= has]


def chosen():
    """Pairs of a path and what is watched."""
    paths = usable_paths()
    if os.environ.get("FASTAV_SANITIZE") != "all":
        return [(path, "memory") for path in dict.fromkeys([paths[0], "portable"])]
    # valgrind does not know AVX-512.
    return [(path, way) for path in paths for way in WAYS if not (way == "valgrind" and path == "avx512")]


def driver(path, flags, folder):
    """The driver of a path as a program; the kernels' objects are kept beside the library's."""
    made = [s for s in steps(COMPILER, Torch(Path(), ""), flags) if f".{path}." in s.object.name]
    made[0].object.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda step: step.compile(), made))
    program = folder / "driver"
    command = [*COMPILER.command, "-std=c++17", "-Wall", "-Wextra", f"-DFASTAV_PATH={path}", f"-I{SOURCES}", *flags]
    command += [str(DRIVER), *(str(step.object) for step in made), "-pthread", "-o", str(program)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "warning" not in done.stdout, done.stdout
    return program


@pytest.mark.skipif(bool(absent), reason=absent)
@pytest.mark.parametrize(("path", "way"), chosen())
def test_no_step_out_of_bounds_and_the_same_bits_on_three_threads(path, way, tmp_path, monkeypatch):
    monkeypatch.delenv("CXXFLAGS", raising=False)
    flags, runner = WAYS[way]
    if runner and shutil.which(runner[0]) is None:
        pytest.skip(f"{runner[0]} is not installed")
    program = driver(path, flags, tmp_path)
    # What valgrind is to tell, that nobody wrote a byte, no filling may hide.
    command = [*runner, str(program), *(["bare"] if runner else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "calls, the same bits" in done.stdout
