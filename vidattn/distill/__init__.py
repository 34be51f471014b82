"""Distillation: a pipeline with sparse or linear attention learns to do what it did with its own."""

from vidattn.distill.config import Distillation
from vidattn.distill.trainer import Distilled, distill

__all__ = ["Distillation", "Distilled", "distill"]
