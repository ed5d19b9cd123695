"""The campaign of benchmarks/faults.py: cases drawn from a seed, runs that are watched and killed, what must hold."""
