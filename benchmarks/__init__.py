"""How fast an update is, against the limit of the processor's products and against peers: `python -m benchmarks`."""
