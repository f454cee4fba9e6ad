"""Measures how fast an update is, beside the processor's limit and other libraries: `python -m benchmarks`."""
