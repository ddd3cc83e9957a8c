"""What the README promises: its example runs as it is pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs_as_pasted(example, tmp_path):
    small = example.replace("vit_base_patch16_224", "vit_tiny_patch16_224")  # the same code, in seconds
    assert small != example
    script = tmp_path / "script.py"
    script.write_text(small + "\nprint(loss.item(), adapter.training)\n")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loss, training = done.stdout.split()[-2:]
    assert 0 < float(loss) < 10
    assert training == "False"
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()


def test_there_is_one():
    assert len(EXAMPLES) == 1


def test_links_resolve():
    root = Path(__file__).parents[1]
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (root / link).exists()] == []
