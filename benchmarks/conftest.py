"""``pytest benchmarks`` ends with a report: figures as JSON, tables as Markdown, pictures."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.environment import environment
from benchmarks.pairs import build, size_for
from benchmarks.report import write_report
from benchmarks.timing import copy_bandwidth, matmul_rate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def size(request):
    """The pair of backbones whose methods are compared, and how it is used."""
    return size_for(DEVICE, full=request.config.option.full)


@pytest.fixture(scope="session")
def pair(size):
    """The two backbones."""
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    return build(size, DEVICE)


def pytest_addoption(parser):
    """Two flags of ours."""
    parser.addoption("--full", action="store_true", help="the AVE step also without a GPU: hours on a CPU")
    parser.addoption("--report", type=Path, default=Path("out/benchmarks"), help="where JSON, tables and pictures go")


def pytest_configure(config):
    """Let pytest-benchmark write its JSON where the report is, unless it was told another file."""
    if config.option.benchmark_json is None and not config.option.benchmark_disable and not config.option.collectonly:
        config.option.report.mkdir(parents=True, exist_ok=True)
        config.option.benchmark_json = str(config.option.report / "benchmarks.json")


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Add where it was measured, and what the machine itself can do."""
    output_json["environment"] = environment(DEVICE)
    output_json["copy bandwidth"] = copy_bandwidth(DEVICE)
    output_json["matmul rate"] = matmul_rate(DEVICE)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Write the report from the JSON that was just closed."""
    path = Path(config.option.benchmark_json or "")
    if not path.is_file():
        return
    written = write_report(json.loads(path.read_text()), config.option.report)
    terminalreporter.write_line(f"report: {', '.join(map(str, [path, *written]))}")
