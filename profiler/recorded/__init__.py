"""Recordings that ship with moescope, to look at where there is nothing to run.

`NAME.zip` holds one recording of at most two megabytes, `NAME.SOURCE.txt` tells how it was made. To add one, put both
here: `python -m moescope.profiler.recorded RECORDING NAME` packs a recording of one's own.
"""
