"""Mixers: modules through which the tokens of a map (B, *grid, C) see each other, one file each."""

from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.bi_level import AttentionLePE, BiLevelRoutingAttention
from vidattn.backbones.mixers.dcal import GlobalLocalCrossAttention, PairwiseCrossAttention
from vidattn.backbones.mixers.dfc import GhostModuleV2
from vidattn.backbones.mixers.dual_gated import DualGatedLinearAttention
from vidattn.backbones.mixers.gated import GatedSoftmaxAttention
from vidattn.backbones.mixers.gpsa import GPSA
from vidattn.backbones.mixers.halo import HaloAttention
from vidattn.backbones.mixers.hilo import HiLoAttention
from vidattn.backbones.mixers.inline import InLineAttention
from vidattn.backbones.mixers.lass import LASS, SS2D
from vidattn.backbones.mixers.mala import MALA
from vidattn.backbones.mixers.maxim import CrossGating, MultiAxisGMLP
from vidattn.backbones.mixers.mpc import MPCAttention
from vidattn.backbones.mixers.neighborhood import NeighborhoodAttention
from vidattn.backbones.mixers.nin import NiNGate
from vidattn.backbones.mixers.rala import RALA
from vidattn.backbones.mixers.routing import ClusteredAttention
from vidattn.backbones.mixers.simplified_linear import SimplifiedLinearAttention
from vidattn.backbones.mixers.softmax import SoftmaxAttention
from vidattn.backbones.mixers.tap import TokenAwarePooling
from vidattn.backbones.mixers.window import WindowAttention

__all__ = [
    "GPSA",
    "LASS",
    "MALA",
    "RALA",
    "SS2D",
    "AttentionLePE",
    "BiLevelRoutingAttention",
    "ClusteredAttention",
    "CrossGating",
    "DualGatedLinearAttention",
    "GatedSoftmaxAttention",
    "GhostModuleV2",
    "GlobalLocalCrossAttention",
    "HaloAttention",
    "HiLoAttention",
    "InLineAttention",
    "MPCAttention",
    "Mixer",
    "MultiAxisGMLP",
    "NeighborhoodAttention",
    "NiNGate",
    "PairwiseCrossAttention",
    "SimplifiedLinearAttention",
    "SoftmaxAttention",
    "TokenAwarePooling",
    "WindowAttention",
]
