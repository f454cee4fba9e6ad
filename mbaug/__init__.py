"""mbaug: offline reinforcement learning from small datasets, with model-based augmentation.

The package follows one paper from its data to its figures. In reading order (a module imports only from its own line and the
lines above):

- ``files``, ``checks``, ``ending``, ``streams``, ``provenance``: atomic writes, checks of values, how processes end, named
  random streams, commit and versions.
- ``engine``: makes the method faster; it computes the same functions, up to rounding.
- ``tasks``: makes the four MuJoCo tasks, steps many at once, evaluates policies, computes scores.
- ``method``: the paper: world model, augmentation, TD3, SAC and others, pre-training and fine-tuning.
- ``datasets``: reads, checks, collects and renders offline data.
- ``experiments``: the evidence: every arm and study as plain data, and code to train, record and verify runs.
- ``reporting``: statistics, figures, the paper's claims, headless execution of the notebooks.
"""

__version__ = "0.1.0"
