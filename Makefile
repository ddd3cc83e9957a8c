# Commands: `make demo`, `make demo-all`, `make test` and its part `make aot`, `make native`. All make the virtual environment and install what is missing first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stamp is newer than the lists it was made from, so an unchanged checkout installs once.
READY := $(VENV)/ready
# The native CPU kernels: the install builds them too, but puts up with a failure; here it stops. No compiler is no failure.
NATIVE := fastav/ops/libfastav_native.so

.PHONY: demo demo-all test interpreted aot lint native clean

demo: $(NATIVE)
	$(BIN)/python -m examples.stamps

# All exercises and clips, three runs of each method.
demo-all: $(NATIVE)
	$(BIN)/python -m examples.stamps --all

# One thread a process, or the two would wait for each other.
test: lint $(NATIVE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
	$(MAKE) interpreted aot

# The ops' tests once more, served by the Triton kernels in Triton's interpreter, and the kernels' own.
interpreted: $(NATIVE)
	TRITON_INTERPRET=1 FASTAV_BACKEND=triton OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/ops tests/kernels

# Compiles every kernel for four chips, no GPU needed; fails on spills, stack frames and too much shared memory.
aot: $(READY)
	$(BIN)/python -m benchmarks.aot

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

native: $(NATIVE)

$(NATIVE): $(READY) $(wildcard csrc/*.cpp csrc/*.h csrc/*.py)
	$(BIN)/python csrc/fastav_build.py --if-compiler

$(READY): pyproject.toml requirements/dev.txt requirements/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastav needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; call make PYTHON=/path/to/python3.11")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --progress-bar off -r requirements/dev.txt
	$(BIN)/python -m pip install --progress-bar off --no-deps --no-build-isolation -e .
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info out fastav/ops/libfastav_native.* fastav/ops/native.txt

# The native kernels without Python and PyTorch, on every vector path that this CPU runs: address, undefined-behaviour
# and thread sanitizer, and valgrind where there is one. Minutes; `make test` has the first two on the widest path.
.PHONY: sanitize
sanitize: $(READY)
	FASTAV_SANITIZE=all $(BIN)/python -m pytest -q tests/csrc/test_sanitizers.py
