"""Mixers: modules through which the tokens of a map (B, *grid, C) see each other, one file each."""

from vidattn.backbones.mixers.activator import Activator
from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.bi_level import AttentionLePE, BiLevelRoutingAttention
from vidattn.backbones.mixers.bidirectional_gated import BidirectionalGatedLinearAttention
from vidattn.backbones.mixers.dcal import GlobalLocalCrossAttention, PairwiseCrossAttention
from vidattn.backbones.mixers.dfc import GhostModuleV2
from vidattn.backbones.mixers.dual_gated import DualGatedLinearAttention
from vidattn.backbones.mixers.flow import FlowAttention
from vidattn.backbones.mixers.gated import GatedSoftmaxAttention
from vidattn.backbones.mixers.gpsa import GPSA
from vidattn.backbones.mixers.halo import HaloAttention
from vidattn.backbones.mixers.hilo import HiLoAttention
from vidattn.backbones.mixers.inline import InLineAttention
from vidattn.backbones.mixers.lass import LASS, SS2D
from vidattn.backbones.mixers.lightnet import LightNetAttention
from vidattn.backbones.mixers.mala import MALA
from vidattn.backbones.mixers.maxim import CrossGating, MultiAxisGMLP
from vidattn.backbones.mixers.mixture_of_heads import (
    MixtureOfHeadAttention,
    collect_balance,
    query_norm_gates,
)
from vidattn.backbones.mixers.mpc import MPCAttention
from vidattn.backbones.mixers.neighborhood import NeighborhoodAttention
from vidattn.backbones.mixers.nin import NiNGate
from vidattn.backbones.mixers.norm_aware import NormAwareLinearAttention, NormGatedSoftmaxAttention
from vidattn.backbones.mixers.rala import RALA
from vidattn.backbones.mixers.relu_linear import ReLULinearAttention
from vidattn.backbones.mixers.routing import ClusteredAttention
from vidattn.backbones.mixers.scatterbrain import ScatterbrainAttention
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
    "Activator",
    "AttentionLePE",
    "BiLevelRoutingAttention",
    "BidirectionalGatedLinearAttention",
    "ClusteredAttention",
    "CrossGating",
    "DualGatedLinearAttention",
    "FlowAttention",
    "GatedSoftmaxAttention",
    "GhostModuleV2",
    "GlobalLocalCrossAttention",
    "HaloAttention",
    "HiLoAttention",
    "InLineAttention",
    "LightNetAttention",
    "MPCAttention",
    "Mixer",
    "MixtureOfHeadAttention",
    "MultiAxisGMLP",
    "NeighborhoodAttention",
    "NiNGate",
    "NormAwareLinearAttention",
    "NormGatedSoftmaxAttention",
    "PairwiseCrossAttention",
    "ReLULinearAttention",
    "ScatterbrainAttention",
    "SimplifiedLinearAttention",
    "SoftmaxAttention",
    "TokenAwarePooling",
    "WindowAttention",
    "collect_balance",
    "query_norm_gates",
]
