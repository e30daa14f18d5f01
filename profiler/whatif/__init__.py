"""What-if projections: the recorded dependencies of every rank, re-run with changed durations."""
