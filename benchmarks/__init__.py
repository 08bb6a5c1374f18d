"""Speed and size, measured by hand with `python -m benchmarks`, never in a test. Figures: RESULTS.md."""
