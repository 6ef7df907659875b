"""What several test files and the benchmarks share."""
