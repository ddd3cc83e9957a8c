"""Where something was measured, in a line."""

import torch

import fastav
from fastav.cost.where import where


def test_a_cpu_is_told_with_its_vectors_threads_and_versions(monkeypatch):
    monkeypatch.setattr("fastav.cost.where.device_name", lambda device: "Some CPU")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for count, threads in ((1, "1 thread"), (2, "2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        told = where(torch.device("cpu"))
        assert told.startswith(f"Some CPU (AVX2), {threads}, torch {torch.__version__}, ")
        assert f", fastav {fastav.__version__}, 2" in told


def test_a_gpu_is_told_without_what_its_host_is(monkeypatch):
    monkeypatch.setattr("fastav.cost.where.device_name", lambda device: "Some GPU")
    assert where(torch.device("cuda")).startswith(f"Some GPU, torch {torch.__version__}, ")
