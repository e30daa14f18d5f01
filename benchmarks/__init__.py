"""What moescope costs and how fast it is: each benchmark compares with a baseline in the same run and prints ratios."""
