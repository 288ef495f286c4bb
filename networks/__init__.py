"""The networks that are pruned: the registered ones, torchvision's and the caller's, their weights and training."""

from ..training.fit import Batches, OnStep, fit
from .build import build_network
from .channel_pad import ChannelPad
from .cifar_resnet import BasicBlock, CifarResNet, cifar_resnet, digits_resnet
from .registry import register_network, registered_networks
from .sampled_conv import SampledConv2d
from .weights import check_tensors, find_weights, load_tensors, load_weights

__all__ = [
    "BasicBlock",
    "Batches",
    "ChannelPad",
    "CifarResNet",
    "OnStep",
    "SampledConv2d",
    "build_network",
    "check_tensors",
    "cifar_resnet",
    "digits_resnet",
    "find_weights",
    "fit",
    "load_tensors",
    "load_weights",
    "register_network",
    "registered_networks",
]
