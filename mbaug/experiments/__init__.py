"""The evidence. In reading order:

- ``studies``: every arm and every study, and the programme with its order, as plain data.
- ``run``: trains one population, from drawing its data to recording it, in stages that resume after a kill.
- ``runner``: trains the missing runs, on this machine or on a cluster.
- ``records``: writes and reads records, each a CSV beside a JSON. ``metadata``: the keys of the JSON.
- ``checkpoint``: folders and locks of stages, and the state from which a run resumes. ``models``: networks and fits as tensors
  and plain data.
- ``measures``: measures of the critics when pre-training ends. ``probes``: the states for them.
- ``trained``: the small trained networks that chapters read.
- ``verify``: trains a recorded run again and compares its rows with the record.
"""
