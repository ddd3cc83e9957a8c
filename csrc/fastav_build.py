"""Builds csrc/ into one shared library: each kernel file once a vector path, the host files once.

The library is no Python module: it holds no Python symbols and knows PyTorch by its stable ABI alone, so one binary
serves every Python and every PyTorch from 2.10 on. Nothing here imports PyTorch: its headers are all that a build
needs.

    python csrc/fastav_build.py                                          # fastav/ops/libfastav_native.so
    python csrc/fastav_build.py --output build/asan --flags "-fsanitize=address,undefined -O1 -g"
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
#: Where the package looks for the library, and for the note on what came of its build.
PACKAGE = SOURCES.parent / "fastav" / "ops"
LIBRARY = "libfastav_native.so"  # on every system: torch.ops.load_library takes any name
NOTE = "native.txt"
OBJECTS = SOURCES.parent / "build" / "native"

TORCH = (2, 10)
HOST = ("host.cpp", "register.cpp")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-fno-math-errno",
    "-fno-trapping-math",
)
HOST_FLAGS = ("-DTORCH_STABLE_ONLY", f"-DTORCH_TARGET_VERSION=0x{TORCH[0]:02x}{TORCH[1]:02x}{0:012x}")
X86_64 = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}
OTHERS: dict[str, tuple[str, ...]] = {"portable": ()}


class BuildError(Exception):
    """The library was not built; the message says why and what to do."""


class NoCompilerError(BuildError):
    """There is no compiler that could."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: how to call it.
        version: its name and version.
        x86_64: whether that is what it compiles for.
    """

    command: tuple[str, ...]
    version: str
    x86_64: bool

    @property
    def paths(self) -> dict[str, tuple[str, ...]]:
        """The vector paths of its machine, with the flags that each adds."""
        return X86_64 if self.x86_64 else OTHERS


@dataclass(frozen=True)
class Torch:
    """A PyTorch to compile against: its folder and its version."""

    folder: Path
    version: str


@dataclass(frozen=True)
class Step:
    """One file to compile: the command, less source and object, and the object, named after what it depends on."""

    source: Path
    command: tuple[str, ...]
    object: Path

    def compile(self) -> None:
        """Compile it, unless it is there; then drop what an older text of the sources made in the same way."""
        if self.object.exists():
            return
        new = self.object.with_suffix(f".{os.getpid()}")  # another build may run beside this one
        _call([*self.command, "-c", str(self.source), "-o", str(new)])
        os.replace(new, self.object)
        for old in self.object.parent.glob(f"{self.object.name.rsplit('.', 2)[0]}.*.o"):
            if old != self.object:
                old.unlink(missing_ok=True)


def find_compiler() -> Compiler:
    """The compiler that ``CXX`` names, or else the first that there is.

    Raises:
        NoCompilerError: there is none, or it is neither GCC nor Clang.
    """
    wanted = "install GCC or Clang, name it in CXX if it is not called c++, g++ or clang++, and install fastav again"
    if os.name == "nt":
        raise NoCompilerError(
            "the native CPU kernels cannot be built on Windows: they need GCC's or Clang's vector types"
        )
    given = shlex.split(os.environ.get("CXX", ""))
    for command in [given] if given else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]) is None:
            continue
        shown = subprocess.run(
            [*command, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=False
        )
        macros = dict(re.findall(r"^#define (\w+) (.*)$", shown.stdout, re.MULTILINE))
        if shown.returncode == 0 and "__GNUC__" in macros:  # Clang says so too
            name = "" if "__clang__" in macros else "GCC "
            return Compiler(tuple(command), name + macros["__VERSION__"].strip('"'), "__x86_64__" in macros)
        if given:
            raise NoCompilerError(
                f"CXX={shlex.join(given)} is neither GCC nor Clang, or does not work; to have them, {wanted}"
            )
    raise NoCompilerError(
        f"{f'CXX={shlex.join(given)} was not found' if given else 'there is no C++ compiler'}; to have them, {wanted}"
    )


def find_torch() -> Torch | None:
    """The first PyTorch that is new enough, without importing it.

    pip builds where the environment that it installs into cannot be imported from, but in the same interpreter, whose
    paths still are that environment's. Where it holds no PyTorch, the one that the build asked for is on ``sys.path``.
    """
    own = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    near = [*site.getsitepackages([sys.prefix, sys.base_prefix]), site.getusersitepackages()]
    for folder in dict.fromkeys([*own, *near, *sys.path]):
        torch = Path(folder) / "torch"
        if not (torch / "include/torch/csrc/stable/library.h").is_file() or not (torch / "version.py").is_file():
            continue
        found = re.search(r"__version__ = '((\d+)\.(\d+)[^']*)'", (torch / "version.py").read_text())
        if found and (int(found[2]), int(found[3])) >= TORCH:
            return Torch(torch, found[1])
    return None


def steps(compiler: Compiler, torch: Torch, flags: Sequence[str] = ()) -> list[Step]:
    """What there is to compile, with ``CXXFLAGS`` and the given flags after ours.

    An object's name tells file, path, what it is made with and what from: one of another compiler, flags, PyTorch or
    text is not taken for it, whatever the times of the files.
    """
    # So that messages and debuggers name files of the library, and no folder of the machine that built it.
    common = (*compiler.command, *FLAGS, f"-ffile-prefix-map={SOURCES.parent}/=")
    last = (*shlex.split(os.environ.get("CXXFLAGS", "")), *flags)
    headers = [file.read_bytes() for file in sorted(SOURCES.glob("*.h"))]
    made = []

    def add(source: Path, path: str, own: tuple[str, ...], includes: tuple[str, ...] = ()) -> None:
        how = _digest(repr((common, own, last, compiler.version, torch.version if includes else "")).encode())
        what = _digest(source.read_bytes() if source.exists() else b"", *headers)
        object = OBJECTS / f"{source.stem}.{path}.{how}.{what}.o"
        made.append(Step(source, (*common, *own, *includes, *last), object))

    # The longest first, so that none is left to compile alone at the end.
    for name in HOST:
        add(SOURCES / name, "host", HOST_FLAGS, ("-isystem", str(torch.folder / "include")))
    for file in sorted(SOURCES.glob("*.cpp"), key=lambda file: -file.stat().st_size):
        if file.name not in HOST:
            for path, own in compiler.paths.items():
                add(file, path, (f"-DFASTAV_PATH={path}", *own))
    return made


def _digest(*texts: bytes) -> str:
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:12]


def build(output: Path = PACKAGE, flags: Sequence[str] = ()) -> Path:
    """Build the library and leave a note beside it that says how.

    Args:
        output: the folder that it is written to.
        flags: more flags, for compiling and for linking.

    Raises:
        BuildError: it was not built. The note says why then, and no library of an earlier build is left.
    """
    output.mkdir(parents=True, exist_ok=True)
    library = output / LIBRARY
    try:
        note = _build(library, flags)
    except BuildError as error:
        library.unlink(missing_ok=True)
        (output / NOTE).write_text(f"{error}\n")
        raise
    (output / NOTE).write_text(f"{note}\n")
    return library


def _build(library: Path, flags: Sequence[str]) -> str:
    compiler, torch = find_compiler(), find_torch()
    if torch is None:
        raise BuildError(
            f"there was no PyTorch {TORCH[0]}.{TORCH[1]} or newer to compile against; install it, then fastav again"
        )
    begin = time.monotonic()
    OBJECTS.mkdir(parents=True, exist_ok=True)
    todo = steps(compiler, torch, flags)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(Step.compile, todo))
    new = library.with_suffix(f".{os.getpid()}")  # a running process may have the old one open
    with tempfile.TemporaryDirectory() as folder:
        linked = [*(str(step.object) for step in todo), *_torch_by_name(compiler, Path(folder))]
        last = [*flags, *shlex.split(os.environ.get("LDFLAGS", ""))]
        _call([*compiler.command, "-shared", *linked, *last, "-o", str(new)])
    os.replace(new, library)
    note = f"built by {compiler.version} against PyTorch {torch.version}, vector paths {', '.join(compiler.paths)}"
    print(f"fastav: {library} {note}, in {time.monotonic() - begin:.0f} s", flush=True)
    return note


def _torch_by_name(compiler: Compiler, folder: Path) -> list[str]:
    """Linker arguments by which the loader takes PyTorch's symbols from the copy that the process has loaded.

    An empty library of that name stands in for the real one, which also defines symbols of the C++ library: they would
    be taken from it.
    """
    if sys.platform == "darwin":
        return ["-undefined", "dynamic_lookup"]
    empty = folder / "libtorch_cpu.so"
    _call([*compiler.command, "-shared", f"-Wl,-soname,{empty.name}", "-x", "c++", os.devnull, "-o", str(empty)])
    return ["-Wl,--no-as-needed", str(empty), "-Wl,--as-needed"]


def _call(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-12:])
        raise BuildError(
            "the compiler failed; name another one in CXX and install fastav again, or report these, its command and "
            f"last lines:\n{shlex.join(command)}\n{last}"
        )
    if done.stdout:
        print(done.stdout, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build fastav's native CPU kernels.")
    parser.add_argument(
        "--output", type=Path, default=PACKAGE, help="the folder for the library, instead of the package"
    )
    parser.add_argument("--flags", type=shlex.split, default=[], help='more flags, such as "-fsanitize=address -g"')
    parser.add_argument("--if-compiler", action="store_true", help="succeed without if there is no compiler")
    chosen = parser.parse_args(arguments)
    try:
        build(chosen.output, chosen.flags)
    except BuildError as error:
        print(f"fastav: no native CPU kernels: {error}", file=sys.stderr)
        sys.exit(not (chosen.if_compiler and isinstance(error, NoCompilerError)))


if __name__ == "__main__":
    main()
