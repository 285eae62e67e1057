"""What the README and docs/results claim, each measured again from nothing by `python -m benchmarks.NAME`."""
