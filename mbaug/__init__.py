"""mbaug: offline reinforcement learning from small datasets, with model-based augmentation.

The package follows one paper from its data to its figures: a variational world model is fitted to 10,000
transitions, imagines next states for half of each batch while TD3+BC trains offline, and TD3 then goes on
online. The modules down to ``training`` are the method; those from ``recording`` on are the evidence.
"""

__version__ = "0.1.0"
