"""What grows with a recording and is taken in piece by piece: columns of tables, kernels in order, swept intervals."""
