"""Benchmarks: each figure that jobq promises, measured beside its target. Run ``python -m benchmarks``.

`measure` has the words and the repeating, `report` the output, `worker` is the program of the other process; every
other module measures one kind of thing and gives rows.
"""
