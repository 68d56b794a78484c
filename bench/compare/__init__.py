"""recur beside the hand-written kernels: checked against float64, then timed. See `python -m bench.compare --help`."""
