"""Fold batch normalisation into the convolutions before it: the same function of the pixels in a third fewer passes."""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(visual: nn.Module) -> nn.Module:
    """Return a copy of open_clip's residual network without batch normalisation; any other tower as it is.

    Only for evaluation: the statistics become part of the weights. Outputs agree to rounding.
    """
    from open_clip.modified_resnet import ModifiedResNet

    if not isinstance(visual, ModifiedResNet):
        return visual
    visual = copy.deepcopy(visual).eval()
    for module in list(visual.modules()):
        # In this network every normalisation is registered right after the convolution that feeds it.
        for (name, first), (after, second) in pairwise(list(module.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(first, second))
                setattr(module, after, nn.Identity())
    return visual
