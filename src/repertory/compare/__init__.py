"""Comparisons: planned, run in parallel, judged with intervals, and reported; and claims, run the same way."""
