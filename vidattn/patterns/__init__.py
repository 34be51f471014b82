"""Attention patterns: pure data that says which keys each query of a token grid sees."""

from vidattn.patterns.bands import Spatial, Temporal
from vidattn.patterns.base import Pattern
from vidattn.patterns.clusters import SemanticClusters
from vidattn.patterns.disc import Disc
from vidattn.patterns.full import Full
from vidattn.patterns.groups import Groups
from vidattn.patterns.hierarchical import Hierarchical
from vidattn.patterns.per_head import PerHead
from vidattn.patterns.radial import Radial
from vidattn.patterns.segments import Segments
from vidattn.patterns.sliding_tile import SlidingTile
from vidattn.patterns.svg import SparseVideoGen
from vidattn.patterns.text import PATTERNS, from_dict, from_text
from vidattn.patterns.topk import TopK
from vidattn.patterns.window import Neighborhood, SlidingWindow

__all__ = [
    "PATTERNS",
    "Disc",
    "Full",
    "Groups",
    "Hierarchical",
    "Neighborhood",
    "Pattern",
    "PerHead",
    "Radial",
    "Segments",
    "SemanticClusters",
    "SlidingTile",
    "SlidingWindow",
    "SparseVideoGen",
    "Spatial",
    "Temporal",
    "TopK",
    "from_dict",
    "from_text",
]
