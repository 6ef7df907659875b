"""Measurements: the paper's inference-time figure, the cost of growth, and micro-cases. See docs/benchmarks.md."""
