"""Everything a GPU can tell about this code, in half an hour: see `python -m benchmarks.gpu_suite --help`."""
