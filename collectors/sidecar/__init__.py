"""What runs beside the target: drains its rings, samples the host, writes the recording."""
