"""Commands and analysis: from a recording or a trace to the answer."""
