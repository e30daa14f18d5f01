"""The verbs of `python -m moescope.instrumented_model`, one a module; each has `add_arguments` and `run`."""
