"""The proof room: what the kernels compile to, what they move, whether they are right, and how long they take.

``python -m benchmarks.aot`` and ``python -m benchmarks.traffic`` need no GPU; ``pytest benchmarks`` times small sizes
on a CPU and full ones on a GPU; ``python -m benchmarks.run_gpu`` and ``python -m benchmarks.tune`` need one;
``python -m benchmarks.run_cpu`` races the native CPU kernels against PyTorch.
"""
