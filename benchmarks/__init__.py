"""Measurements behind docs/performance.md: ratios between contenders in one run, medians of interleaved repetitions."""
