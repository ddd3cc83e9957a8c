"""Optional packages that are missing: the error names what brings them."""

import re
import sys

import pytest

from fastav.adapters.storage import save_tensors
from fastav.optional import load_optional


def test_a_module_that_loads_is_the_module():
    assert load_optional("os.path", by="paths", extra="data") is sys.modules["os.path"]


@pytest.mark.parametrize("failure", [ImportError, OSError, RuntimeError])
def test_what_does_not_load_names_the_extra(tmp_path, monkeypatch, failure):
    (tmp_path / "built_for_another_torch.py").write_text(f"raise {failure.__name__}('undefined symbol')\n")
    monkeypatch.syspath_prepend(tmp_path)
    wanted = 'readers need built_for_another_torch, which does not load: pip install "fastav[data]"'
    with pytest.raises(ImportError, match=re.escape(wanted)):
        load_optional("built_for_another_torch", by="readers", extra="data")


def test_saving_without_safetensors_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r'saved adapters need safetensors, .* "fastav\[training\]"'):
        save_tensors({}, tmp_path / "adapter_model.safetensors")
