"""The stages of make gpu: benchmarks/gpu_checks.py runs them, each in processes of its own."""
