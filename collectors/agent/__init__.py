"""What is loaded into the target process: standard library only, fail-open."""
