"""What devices can do (`table` over `hardware.toml`, `residency`), and what their counters say (`samples`)."""
