"""mbaug: offline reinforcement learning from small datasets, with model-based augmentation.

The package follows one paper from its data to its figures. The map, in reading order; imports go down this list only:

- ``files``, ``checks``, ``ending``, ``streams``, ``provenance``: files that are written whole or not at all, checks of what is
  given, how processes end, named random streams, what a number depends on.
- ``engine``: makes the method fast and changes none of its numbers.
- ``tasks``: the four MuJoCo tasks: make, step side by side, evaluate, score.
- ``method``: the paper. World model, augmentation, TD3, SAC and others, pre-training and fine-tuning.
- ``datasets``: offline data: read, check, collect, render.
- ``experiments``: the evidence: every arm and study as plain data, how runs are trained, recorded and verified.
- ``reporting``: statistics, figures, the paper's claims, running the notebooks headless.
"""

__version__ = "0.1.0"
