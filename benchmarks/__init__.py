"""Benchmarks: each figure that jobq promises, measured beside its target. Run ``python -m benchmarks``.

`measure` has the words and the repeating, `report` the output and `progress` what is told meanwhile, `worker` is the
program of the other process, `servers` has what is measured on a Redis or Valkey server; every other module measures
one kind of thing and gives rows.
"""
