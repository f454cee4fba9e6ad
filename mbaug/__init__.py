"""mbaug: offline reinforcement learning from small datasets, with model-based augmentation.

The package follows one paper from its data to its figures. The map, in reading order; imports go down this list only:

- ``files``, ``checks``, ``ending``, ``streams``, ``provenance``: files written whole, refusals in sentences, how processes end,
  named random streams, versions.
- ``engine``: makes the method fast and changes no number of it.
- ``tasks``: the four MuJoCo tasks: make, step side by side, evaluate, score.
- ``method``: the paper. World model, augmentation, TD3, SAC and others, pre-training and fine-tuning.
- ``datasets``: the offline data: read, checked, collected, rendered.
- ``experiments``: the evidence: every arm and study as data, what trains them, and their records.
- ``reporting``: statistics, figures, the paper's claims, and the notebooks run headless.
"""

__version__ = "0.1.0"
