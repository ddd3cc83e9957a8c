"""The Triton kernels of fastav, one file an op; installed as ``fastav.kernels``.

No kernel has been written yet: on every device the ops are served by :mod:`fastav.reference`, and
:func:`fastav.backends` says so.
"""
