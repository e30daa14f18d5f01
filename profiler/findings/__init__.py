"""What costs time: rules over `aggregates` of any run, with advice and the bounds of a gain."""
