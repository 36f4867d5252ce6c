"""The accelerated classes. Apart from :mod:`~fastssd.compat.torchvision.swap`, because these need torchvision."""

from fastssd.compat.torchvision._dense import (
    FastFCOS,
    FastFCOSHead,
    FastRetinaNet,
    FastRetinaNetClassificationHead,
    FastRetinaNetRegressionHead,
)
from fastssd.compat.torchvision._host import FastAnchorGenerator, FastDefaultBoxGenerator
from fastssd.compat.torchvision._rcnn import FastRegionProposalNetwork, FastRoIHeads
from fastssd.compat.torchvision._ssd import FastSSD

CLASSES: tuple[type, ...] = (
    FastAnchorGenerator,
    FastDefaultBoxGenerator,
    FastSSD,
    FastRetinaNet,
    FastRetinaNetClassificationHead,
    FastRetinaNetRegressionHead,
    FastFCOS,
    FastFCOSHead,
    FastRegionProposalNetwork,
    FastRoIHeads,
)
