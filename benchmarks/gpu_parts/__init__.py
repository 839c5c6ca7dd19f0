"""The parts of benchmarks/gpu.py, one module for each subject."""
