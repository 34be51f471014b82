"""Benchmarks of single attention calls: cases as data, one runner, results as JSON, a table and a plot.

``vidattn bench`` is its command line. Committed results are in the checkout's ``benchmarks/results``.
"""

from vidattn.bench.cases import CASES, Case

__all__ = ["CASES", "Case"]
