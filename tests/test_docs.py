"""What README and docs promise: their examples run as pasted, and their links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code(page):
    """All Python blocks of a page, one after the other: later ones use what earlier ones made."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


def run(script, folder):
    (folder / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_example_runs_as_pasted(tmp_path):
    small = code(ROOT / "README.md").replace("vit_base_patch16_224", "vit_tiny_patch16_224")  # the same, in seconds
    assert "vit_tiny" in small
    loss, training = run(small + "\nprint(loss.item(), adapter.training)\n", tmp_path).split()[-2:]
    assert 0 < float(loss) < 10
    assert training == "False"
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if code(page)], ids=lambda page: page.stem)
def test_examples_run_as_pasted(page, tmp_path):
    run(code(page), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_resolve(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", prose) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_shows_the_demos_own_table():
    shown = re.search(r"<!-- demo output: begin -->(.*)<!-- demo output: end -->", PAGES[0].read_text(), re.DOTALL)
    assert shown
    head, _, *rows = (re.split(r" *\| *", line)[1:-1] for line in shown[1].strip().split("\n\n")[0].splitlines())
    methods = ["nothing learned", "linear probe, last layers", "mean-pooled, all layers", "Mettle", "MoLT"]
    assert head[:-1] == ["exercise", "score", *methods]
    assert {row[0].partition(",")[0] for row in rows} == {"localisation", "parsing", "questions", "segmentation"}
    for row in rows:
        assert all(re.fullmatch(r"\d+\.\d( ± \d+\.\d)?", cell) for cell in row[2:-1]), row
