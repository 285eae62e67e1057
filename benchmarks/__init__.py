"""What the README claims, each measured again from nothing by `python -m benchmarks.NAME`."""
