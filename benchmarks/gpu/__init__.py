"""The stages of make gpu: benchmarks/gpu_checks.py runs them, each in processes of its own."""

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
