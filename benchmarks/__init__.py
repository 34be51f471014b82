"""Benchmarks that need the checkout, and committed results. Single attention calls: ``vidattn bench``."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
