"""How the native CPU library is built and packed: what is compiled how, what is left when it fails, what is in it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools.dist import Distribution

import fastav_build
import fastav_pep517
from fastav_build import LIBRARY, NOTE, BuildError, Compiler, NoCompilerError, Torch, build, find_compiler, steps

X86 = Compiler(("c++",), "GCC 12.2.0", x86_64=True)
ARM = Compiler(("clang++", "--target=aarch64-linux-gnu"), "Clang 19.1.0", x86_64=False)
TORCH = Torch(Path("/somewhere/torch"), "2.11.0")

try:
    find_compiler()
    absent = ""
except NoCompilerError as error:
    absent = str(error)
needs_compiler = pytest.mark.skipif(bool(absent), reason=absent)


@pytest.fixture(autouse=True)
def own_flags(monkeypatch):
    """Flags are the tests' own."""
    monkeypatch.delenv("CXXFLAGS", raising=False)
    monkeypatch.delenv("LDFLAGS", raising=False)


@pytest.fixture
def own_requirements(monkeypatch):
    """What setuptools asks for itself: it would read, and write, the checkout."""
    monkeypatch.setattr(fastav_pep517.build_meta, "get_requires_for_build_wheel", lambda settings: ["wheels"])
    monkeypatch.setattr(fastav_pep517.build_meta, "get_requires_for_build_editable", lambda settings: ["links"])


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A small csrc/ to break."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "all.h").write_text("#pragma once\n")
    for name in ("host", "register", "kernel"):
        (folder / f"{name}.cpp").write_text('#include "all.h"\n')
    monkeypatch.setattr(fastav_build, "SOURCES", folder)
    monkeypatch.setattr(fastav_build, "OBJECTS", tmp_path / "objects")
    monkeypatch.setattr(fastav_build, "find_torch", lambda: TORCH)
    return folder


def by_label(made):
    """Steps by file and path."""
    return {tuple(step.object.name.split(".")[:2]): step for step in made}


def machine_flags(step):
    return [flag for flag in step.command if flag.startswith("-m")]


def test_x86_64_compiles_each_kernel_for_three_paths(sources):
    made = by_label(steps(X86, TORCH))
    assert set(made) == {
        ("host", "host"),
        ("register", "host"),
        ("kernel", "avx512"),
        ("kernel", "avx2"),
        ("kernel", "portable"),
    }
    wide = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
    assert machine_flags(made["kernel", "avx512"]) == wide
    assert machine_flags(made["kernel", "avx2"]) == ["-mavx2", "-mfma"]
    assert machine_flags(made["kernel", "portable"]) == machine_flags(made["host", "host"]) == []
    assert len({step.object for step in made.values()}) == 5


def test_other_machines_compile_one_path(sources):
    made = by_label(steps(ARM, TORCH))
    assert set(made) == {("host", "host"), ("register", "host"), ("kernel", "portable")}
    assert all(machine_flags(step) == [] for step in made.values())
    assert "-DFASTAV_PATH=portable" in made["kernel", "portable"].command
    assert all(step.command[:2] == ARM.command for step in made.values())


def test_only_host_files_know_torch(sources):
    made = by_label(steps(X86, TORCH))
    for label, step in made.items():
        host = label[1] == "host"
        assert ("-DTORCH_TARGET_VERSION=0x020a000000000000" in step.command) == host
        assert ("-DTORCH_STABLE_ONLY" in step.command) == host
        assert ("/somewhere/torch/include" in step.command) == host
        assert any(flag.startswith("-DFASTAV_PATH") for flag in step.command) != host
        for flag in ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"):
            assert flag in step.command


def test_objects_are_named_after_what_made_them(sources, monkeypatch):
    made = by_label(steps(X86, TORCH))
    newer = by_label(steps(X86, Torch(TORCH.folder, "2.12.0")))
    assert {label for label in made if made[label].object != newer[label].object} == {
        ("host", "host"),
        ("register", "host"),
    }
    elsewhere = by_label(steps(X86, Torch(Path("/elsewhere/torch"), "2.11.0")))
    assert all(made[label].object == elsewhere[label].object for label in made)
    monkeypatch.setenv("CXXFLAGS", "-O1 -DNAME='a b'")
    flagged = by_label(steps(X86, TORCH, ["-g"]))
    for label, step in flagged.items():
        assert step.command[-3:] == ("-O1", "-DNAME=a b", "-g")
        assert step.object != made[label].object


def test_a_compiler_that_is_not_there(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++ -m64")
    with pytest.raises(NoCompilerError, match=re.escape("CXX=/nonexistent/g++ -m64 was not found")) as caught:
        find_compiler()
    assert "install GCC or Clang" in str(caught.value)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoCompilerError, match=re.escape("there is no C++ compiler")):
        find_compiler()


def test_a_compiler_that_is_neither_gcc_nor_clang(monkeypatch):
    monkeypatch.setenv("CXX", shutil.which("true"))
    with pytest.raises(NoCompilerError, match="neither GCC nor Clang"):
        find_compiler()


def test_windows_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(NoCompilerError, match="Windows"):
        find_compiler()


def fake_torch(folder, version):
    stable = folder / "torch/include/torch/csrc/stable"
    stable.mkdir(parents=True)
    (stable / "library.h").touch()
    (folder / "torch/version.py").write_text(f"__version__ = '{version}'\n")


@needs_compiler
def test_torch_is_found_without_importing_it(tmp_path, monkeypatch, own_requirements):
    monkeypatch.setattr(fastav_build.sysconfig, "get_path", lambda name: str(tmp_path / "target"))
    monkeypatch.setattr(fastav_build.site, "getsitepackages", lambda prefixes: [])
    monkeypatch.setattr(fastav_build.site, "getusersitepackages", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "overlay")])
    assert fastav_build.find_torch() is None
    assert fastav_pep517.get_requires_for_build_wheel() == ["wheels", "torch>=2.10"]
    assert fastav_pep517.get_requires_for_build_editable() == ["links", "torch>=2.10"]
    fake_torch(tmp_path / "overlay", "2.15.1+cpu")
    assert fastav_build.find_torch() == Torch(tmp_path / "overlay/torch", "2.15.1+cpu")
    fake_torch(tmp_path / "target", "2.10.0+cu128")  # where fastav goes comes first
    assert fastav_build.find_torch() == Torch(tmp_path / "target/torch", "2.10.0+cu128")
    (tmp_path / "target/torch/version.py").write_text("__version__ = '2.9.1'\n")
    assert fastav_build.find_torch().version == "2.15.1+cpu"
    assert fastav_pep517.get_requires_for_build_wheel() == ["wheels"]
    assert fastav_pep517.get_requires_for_build_editable() == ["links"]


def test_without_a_compiler_nothing_more_is_fetched(monkeypatch, own_requirements):
    monkeypatch.setattr(fastav_pep517, "find_torch", lambda: None)
    monkeypatch.setenv("CXX", "/nonexistent")
    assert fastav_pep517.get_requires_for_build_wheel() == ["wheels"]
    assert fastav_pep517.get_requires_for_build_editable() == ["links"]


def test_no_compiler_leaves_the_reason_and_no_library(tmp_path, monkeypatch):
    (tmp_path / LIBRARY).write_text("of an earlier build")
    monkeypatch.setenv("CXX", "/nonexistent")
    with pytest.raises(NoCompilerError):
        build(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [NOTE]
    assert (tmp_path / NOTE).read_text().startswith("CXX=/nonexistent was not found; ")
    with pytest.raises(SystemExit) as left:
        fastav_build.main(["--output", str(tmp_path)])
    assert left.value.code
    with pytest.raises(SystemExit) as left:
        fastav_build.main(["--output", str(tmp_path), "--if-compiler"])
    assert not left.value.code


@needs_compiler
def test_no_torch_leaves_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(fastav_build, "find_torch", lambda: None)
    with pytest.raises(BuildError, match=re.escape("no PyTorch 2.10 or newer to compile against")):
        build(tmp_path)
    assert "no PyTorch" in (tmp_path / NOTE).read_text()


@needs_compiler
def test_a_failure_leaves_the_compilers_words_and_success_removes_them(sources, tmp_path):
    output = tmp_path / "output"
    assert build(output) == output / LIBRARY
    assert (output / NOTE).read_text().startswith(f"built by {find_compiler().version} against PyTorch 2.11.0")
    good = (sources / "kernel.cpp").read_text()
    (sources / "kernel.cpp").write_text("int broken = nothing_of_this_name;\n")
    with pytest.raises(BuildError, match="nothing_of_this_name"):
        build(output)
    assert [file.name for file in output.iterdir()] == [NOTE]
    note = (output / NOTE).read_text()
    assert "nothing_of_this_name" in note
    assert "-DFASTAV_PATH" in note  # the command
    with pytest.raises(SystemExit) as left:
        fastav_build.main(["--output", str(output), "--if-compiler"])
    assert left.value.code  # there is a compiler: its failure is one
    (sources / "kernel.cpp").write_text(good)
    build(output)
    assert sorted(file.name for file in output.iterdir()) == [LIBRARY, NOTE]
    assert "nothing" not in (output / NOTE).read_text()


@needs_compiler
def test_only_what_changed_is_compiled(sources, tmp_path):
    def changed():
        before = {file.name: file.stat().st_mtime_ns for file in fastav_build.OBJECTS.iterdir()}
        build(tmp_path)
        now = {file.name: file.stat().st_mtime_ns for file in fastav_build.OBJECTS.iterdir()}
        assert len(now) == len(before)  # what served before is gone
        return {name.split(".")[0] for name in now if now[name] != before.get(name)}

    build(tmp_path)
    assert changed() == set()
    (sources / "kernel.cpp").write_text("static int other;\n")
    os.utime(sources / "kernel.cpp", (0, 0))  # as copied from elsewhere: older than its objects
    assert changed() == {"kernel"}
    (sources / "all.h").write_text("// other\n")
    assert changed() == {"host", "register", "kernel"}


@pytest.mark.parametrize("pure", [True, False])
def test_wheels_are_for_every_python(pure):
    command = fastav_pep517.BdistWheel(Distribution({"name": "fastav", "version": "1"}))
    command.ensure_finalized()
    command.root_is_pure = pure
    python, abi, platform = command.get_tag()
    assert (python, abi) == ("py3", "none")
    assert (platform == "any") == pure
    assert re.fullmatch(r"\w+", platform)


def test_a_package_without_library_carries_the_reason(tmp_path, monkeypatch, capfd):
    package = tmp_path / "fastav" / "ops"
    package.mkdir(parents=True)
    (package / LIBRARY).write_text("of an earlier build")
    monkeypatch.setenv("CXX", "/nonexistent")
    command = fastav_pep517.BuildPy(Distribution({"name": "fastav", "version": "1", "packages": []}))
    command.ensure_finalized()
    command.build_lib = str(tmp_path)
    command.run()
    assert [file.name for file in package.iterdir()] == [NOTE]
    assert "WITHOUT its native CPU kernels" in capfd.readouterr().err


# ---- the library itself --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Of the objects that `make` has left, where they are newer than the sources."""
    return build(tmp_path_factory.mktemp("native"))


def names(*command):
    """What nm lists: type and name of each symbol."""
    listed = subprocess.run(["nm", *map(str, command)], capture_output=True, text=True, check=True).stdout
    return [tuple(line.split()[-2:]) for line in listed.splitlines() if line]


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_the_library_needs_torchs_stable_abi_and_the_c_libraries_alone(library):
    undefined = names("-D", "--undefined-only", library)
    # C and C++ library symbols carry the versions of their libraries; weak ones are the linker's own.
    own = re.compile(r"(aoti_torch|torch)_\w+|[^@]+@(GLIBC|GLIBCXX|CXXABI|GCC|LIBC)\w*_[\d.]+")
    assert [name for kind, name in undefined if kind != "w" and not own.fullmatch(name)] == []
    assert any(name.startswith("aoti_torch_library") for _, name in undefined)
    assert [name for _, name in names("-D", library) if re.match("_?Py", name)] == []
    shown = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "[libtorch_cpu.so]" in shown  # by which the loader finds them
    assert not re.search("RPATH|RUNPATH|libpython|libtorch_python", shown)


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_no_path_defines_what_another_could_be_linked_with(library):
    compiler = find_compiler()
    made = by_label(steps(compiler, fastav_build.find_torch()))
    paths = {label: step for label, step in made.items() if label[1] != "host"}
    assert {path for _, path in paths} == set(compiler.paths)
    for (file, path), step in paths.items():
        step.compile()  # it is there already, unless CXXFLAGS say otherwise
        # Of symbols that are alike in several objects the linker keeps one, whichever it meets first: a shared inline
        # function could be the one compiled for AVX-512. Mangled names begin with their namespaces.
        shared = [name for kind, name in names("--defined-only", step.object) if kind in "WVuwv"]
        space = re.compile(rf"_Z(T[VTIS]|GV)?N[KVrRO]*6fastav{len(path)}{path}|DW\.ref\.__gxx_personality_v0")
        assert [name for name in shared if not space.match(name)] == [], (file, path)


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="ASan and UBSan as Linux has them")
def test_the_same_library_with_sanitizers(sources, tmp_path):
    (sources / "kernel.cpp").write_text(
        "namespace fastav { namespace FASTAV_PATH { int at(int* from, int i) { return from[i]; } } }\n"
    )
    fastav_build.main(["--output", str(tmp_path / "asan"), "--flags", "-fsanitize=address,undefined -O1 -g"])
    undefined = {name for _, name in names("-D", "--undefined-only", tmp_path / "asan" / LIBRARY)}
    assert any(name.startswith("__asan_") for name in undefined)
    assert any(name.startswith("__ubsan_") for name in undefined)
