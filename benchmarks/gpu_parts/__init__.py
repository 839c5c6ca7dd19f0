"""The parts of benchmarks/gpu.py, with one module for each subject."""
