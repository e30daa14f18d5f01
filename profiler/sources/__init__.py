"""Readers of recordings and of other tools' traces; `profiler.source.open_source` is the door.

`recording` reads the recorder's own tables. A trace file goes *blocks → events → columns →
tables*: `kineto_*` and `nsight` bring `columns.TraceColumns`, `tables` makes the recording's tables of them, `traces`
puts the files of a run together.
"""
