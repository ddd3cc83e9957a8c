"""``pytest benchmarks`` ends with a report: figures as JSON, tables as Markdown, pictures."""

import datetime
import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.environment import DEVICE, environment
from benchmarks.pairs import build, size_for
from benchmarks.report import write_report
from benchmarks.timing import copy_bandwidth, matmul_rate
from fastav.cost.room import give_back

MACHINE = pytest.StashKey[dict]()
ABSENCES = pytest.StashKey[list]()
WRITTEN = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def size(request):
    """The pair of backbones whose methods are compared, and how it is used."""
    return size_for(DEVICE, full=request.config.option.full)


@pytest.fixture(scope="session")
def pair(size):
    """The two backbones."""
    return build(size, DEVICE)


def pytest_addoption(parser):
    """Two flags of ours."""
    parser.addoption("--full", action="store_true", help="the AVE step also without a GPU: an hour or more on a CPU")
    parser.addoption("--report", type=Path, help="folder for JSON, tables and pictures; else a new one of that date")


def pytest_configure(config):
    """Let pytest-benchmark write its JSON where the report is, unless it was told another file."""
    config.stash[MACHINE], config.stash[ABSENCES] = {}, []
    if config.option.report is None:
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M%S")
        config.option.report = Path("out/benchmarks") / date
    if config.option.benchmark_json is None and not config.option.benchmark_disable and not config.option.collectonly:
        config.option.benchmark_json = str(config.option.report / "benchmarks.json")


@pytest.fixture(scope="session", autouse=True)
def machine(pytestconfig):
    """Where it is measured, and what the machine itself can do, before anything else keeps it busy."""
    found = pytestconfig.stash[MACHINE]
    found["environment"] = environment(DEVICE)
    found["copy bandwidth"] = copy_bandwidth(DEVICE)
    found["matmul rate"] = matmul_rate(DEVICE)
    return found


@pytest.fixture(autouse=True)
def room():
    """Give back what an earlier test held, also one that was broken off."""
    give_back()


@pytest.fixture
def absence(pytestconfig):
    """Let the report say what was not measured, and why."""

    def note(reason, **what):
        pytestconfig.stash[ABSENCES].append({**what, "reason": reason})

    return note


@pytest.fixture
def absent(absence):
    """The same, and skip the test."""

    def skip(reason, **what):
        absence(reason, **what)
        pytest.skip(reason)

    return skip


@pytest.fixture
def failing(absence):
    """Let the report say what is raised inside of the ``with`` block, too; a skip is no failure."""

    @contextmanager
    def note(**what):
        try:
            yield
        except Exception as error:
            absence(f"it failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", **what)
            raise

    return note


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Add where it was measured, what the machine can do, and what was not measured."""
    config.option.report.mkdir(parents=True, exist_ok=True)
    Path(config.option.benchmark_json).parent.mkdir(parents=True, exist_ok=True)
    for private in ("node", "release"):  # reports are shown around
        output_json.get("machine_info", {}).pop(private, None)
    output_json |= config.stash[MACHINE] | {"absences": config.stash[ABSENCES]}
    config.stash[WRITTEN] = True


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Write the report from the JSON that was just closed; of absences alone pytest-benchmark writes none."""
    path = Path(config.option.benchmark_json or "")
    if not config.stash.get(WRITTEN, False):
        if not config.stash[ABSENCES] or config.option.benchmark_disable:
            return
        found: dict = {"benchmarks": []}
        pytest_benchmark_update_json(config, [], found)
        path.write_text(json.dumps(found, indent=1) + "\n")
    written = write_report(json.loads(path.read_text()), config.option.report)
    terminalreporter.write_line(f"report: {', '.join(map(str, [path, *written]))}")
