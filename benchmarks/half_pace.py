"""`moescope` for runs that stand still half of the time: what its recorder does by the clock it does half as often."""

from __future__ import annotations

from moescope.collectors.samplers import units
from moescope.collectors.sidecar import keeper, run, sampling
from moescope.profiler.commands.main import main

for module, names in (
    (keeper, ("CALM_S", "UNWATCHED_S", "META_S")),
    (sampling, ("SAMPLE_S",)),
    (units, ("UNWATCHED_S",)),
    (run, ("CALM_S",)),
):
    for name in names:
        setattr(module, name, 2 * getattr(module, name))

if __name__ == "__main__":
    main()
