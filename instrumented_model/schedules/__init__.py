"""In what order the chunks of micro-batches run."""
