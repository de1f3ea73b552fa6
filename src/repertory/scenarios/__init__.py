"""Scenarios: what kind of problem is being solved, one file each."""
