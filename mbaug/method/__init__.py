"""The paper's method. In reading order:

- ``settings``: every hyper-parameter once, with symbol, unit and source.
- ``networks``: perceptrons with a leading population axis, and Adam.
- ``transitions``: what an agent learns from, offline and online.
- ``world_model``, ``imagination``: a VAE that predicts one step, and what replaces it in the
  controls.
- ``augmentation``: the paper's one idea: half of a batch's next states are imagined.
- ``td3``, ``sac``, ``layernorm``, ``rlpd``, ``iql``, ``bc``: one file per algorithm. Each ends with
  the record that ``algorithm`` describes.
- ``arms``: the registry of algorithms, and all settings of one way to train an online agent.
- ``training``: offline pre-training and online fine-tuning, as generators.

Everything here runs in plain torch. ``mbaug.engine`` computes the same functions faster: a run
passes it in.
"""
