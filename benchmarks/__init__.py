"""Speed and size, measured by hand with `python -m benchmarks`; never timed in a test. Figures: RESULTS.md."""
