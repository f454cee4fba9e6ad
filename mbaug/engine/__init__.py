"""The engine makes the method faster and computes the same functions.

The method also runs without it: a run passes it in.

- ``process``: one thread per process, and the fastest matrix product at each precision.
- ``perceptron``: a population of perceptrons with a backward pass derived by hand. It equals the plain one up to rounding,
  about 1e-7 in float32, so the results of a long training run differ.
- ``graphs``: a sequence of updates, captured once and then replayed, on the CPU bit for bit.
"""

from mbaug.engine.process import DEVICES, check_device, has_bfloat16, prepare

__all__ = ["DEVICES", "check_device", "has_bfloat16", "prepare"]
