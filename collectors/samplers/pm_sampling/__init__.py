"""GPU counters every few milliseconds, by CUPTI's PM sampling in a process of its own. Not yet run on a GPU.

`process` samples, with `cupti` and `gpu`; `sampler` starts it from the recorder and turns what it says into rows, by
`metrics` (what is asked for, and in which unit it comes) and `clock` (when a sample was).
"""
