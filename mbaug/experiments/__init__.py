"""The evidence. In reading order:

- ``studies``: every arm, every study, the programme and its order, as plain data.
- ``run``: one population, from the drawing of its data to its record, in stages that go on after a kill.
- ``runner``: what trains the runs that are missing, on this machine or on a cluster.
- ``records``: a run is a CSV beside a JSON; written once, then only read. ``metadata``: what the JSON says, key by key.
- ``checkpoint``: what lets a run go on.
- ``measures``, ``probes``: what is asked of critics when pre-training ends, and in which states.
- ``verify``: whether training a recorded run again gives its rows.
"""
