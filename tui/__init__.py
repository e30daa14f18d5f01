"""The dashboard: draws `profiler.snapshot` values and computes nothing.

app       life, frames, keys and mouse        parts, body, frame, screens/   what is painted where
commands  the one table of keys and names     draw, text, theme, rows        what they are painted with
actions/  what each command does              watcher                        asks the feed on a thread of its own
prompt    the line that asks                  ending, output                 what follows a run that goes on
"""
