"""The answer to `moescope summary`: `answer` from tables in memory, `driver` rank by rank on any executor."""
