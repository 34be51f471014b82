"""Mixers: modules through which the tokens of a map (B, *grid, C) see each other, one file each."""

from vidattn.backbones.mixers.base import Mixer
from vidattn.backbones.mixers.bi_level import AttentionLePE, BiLevelRoutingAttention
from vidattn.backbones.mixers.bidirectional_gated import BidirectionalGatedLinearAttention
from vidattn.backbones.mixers.flow import FlowAttention
from vidattn.backbones.mixers.gated import GatedSoftmaxAttention
from vidattn.backbones.mixers.hilo import HiLoAttention
from vidattn.backbones.mixers.inline import InLineAttention
from vidattn.backbones.mixers.lightnet import LightNetAttention
from vidattn.backbones.mixers.mala import MALA
from vidattn.backbones.mixers.mixture_of_heads import (
    MixtureOfHeadAttention,
    collect_balance,
    query_norm_gates,
)
from vidattn.backbones.mixers.neighborhood import NeighborhoodAttention
from vidattn.backbones.mixers.norm_aware import NormAwareLinearAttention, NormGatedSoftmaxAttention
from vidattn.backbones.mixers.rala import RALA
from vidattn.backbones.mixers.relu_linear import ReLULinearAttention
from vidattn.backbones.mixers.scatterbrain import ScatterbrainAttention
from vidattn.backbones.mixers.simplified_linear import SimplifiedLinearAttention
from vidattn.backbones.mixers.window import WindowAttention

__all__ = [
    "MALA",
    "RALA",
    "AttentionLePE",
    "BiLevelRoutingAttention",
    "BidirectionalGatedLinearAttention",
    "FlowAttention",
    "GatedSoftmaxAttention",
    "HiLoAttention",
    "InLineAttention",
    "LightNetAttention",
    "Mixer",
    "MixtureOfHeadAttention",
    "NeighborhoodAttention",
    "NormAwareLinearAttention",
    "NormGatedSoftmaxAttention",
    "ReLULinearAttention",
    "ScatterbrainAttention",
    "SimplifiedLinearAttention",
    "WindowAttention",
    "collect_balance",
    "query_norm_gates",
]
