"""The three networks that SHOT and SOCKET save (Liang et al., arXiv 2002.08546; Ahmed et al., arXiv 2209.04027), as one:

    features = netB(netF(x)), logits = netC(features)

netF is a torchvision ResNet without its last layer; netB the linear layer `bottleneck`, then the batch norm `bn`; netC the
linear layer `fc`, whose weight may come as weight norm keeps it. It leaves as a plain one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from app.errors import Problem
from worker.adaptation.state_dict_file import PARTS, without_prefixes

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d")
"""What SHOT trains, by torchvision's names."""
HEAD = "netC.fc"
MAX_WIDTH = 8192
"""Of a bottleneck: the file says how wide it is, and no file may ask for more. SHOT's is 256."""
WEIGHT_NORM = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""g and v by torch.nn.utils.weight_norm, and by torch.nn.utils.parametrizations.weight_norm since torch 2.0."""


@dataclass(frozen=True)
class Bottleneck:
    """width: the number of features. normalised: whether they pass through `bn` (SHOT's type `bn`; its `ori` has none)."""

    width: int = 256
    normalised: bool = True


def network(name: str, classes: int, bottleneck: Bottleneck) -> nn.Sequential:
    """netF, netB and netC one after the other, with fresh weights. name: one of RESNETS."""
    netF = torchvision.models.get_model(name, weights=None)
    netB = OrderedDict[str, nn.Module](bottleneck=nn.Linear(netF.fc.in_features, bottleneck.width))
    if bottleneck.normalised:
        netB["bn"] = nn.BatchNorm1d(bottleneck.width)
    netC = OrderedDict(fc=nn.Linear(bottleneck.width, classes))
    netF.fc = nn.Identity()
    return nn.Sequential(OrderedDict(netF=netF, netB=nn.Sequential(netB), netC=nn.Sequential(netC)))


def plain(tensors: dict[str, Tensor], classes: int) -> tuple[dict[str, Tensor], Bottleneck]:
    """A file's tensors under the names of `network`, and the bottleneck that they are of. Raises Problem
    source_model_mismatch where the bottleneck is too wide, or a norm g is not of one number a class."""
    for part in PARTS:
        tensors = without_prefixes(tensors, f"{part}.")
    bottleneck = _bottleneck(tensors)
    if not bottleneck.normalised:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("netB.bn.")}
    return _without_weight_norm(tensors, (classes, bottleneck.width)), bottleneck


def _bottleneck(tensors: dict[str, Tensor]) -> Bottleneck:
    """As far as the tensors tell: what they lack or have in another shape is found when the network is filled."""
    weight = tensors.get("netB.bottleneck.weight")
    width = weight.shape[0] if weight is not None and weight.ndim == 2 and weight.shape[0] > 0 else Bottleneck.width
    if width > MAX_WIDTH:
        detail = f"netB.bottleneck makes {width} features of an image; at most {MAX_WIDTH} are taken"
        raise _ill_shaped("netB.bottleneck.weight", weight, [MAX_WIDTH, weight.shape[1]], detail)
    # SHOT's `ori` keeps a `bn` that it never runs: its statistics are then those it was made with.
    mean, var = (tensors.get(f"netB.bn.running_{what}") for what in ("mean", "var"))
    if mean is None or var is None or not mean.shape == var.shape == (width,):
        return Bottleneck(width, any(name.startswith("netB.bn.") for name in tensors))
    return Bottleneck(width, not (bool((mean == 0).all()) and bool((var == 1).all())))


def _without_weight_norm(tensors: dict[str, Tensor], shape: tuple[int, int]) -> dict[str, Tensor]:
    """w = g v / ||v||, row by row (Salimans and Kingma, arXiv 1602.07868). g: [K, 1], v: [K, D] = shape."""
    for g_name, v_name in ((f"{HEAD}.{g}", f"{HEAD}.{v}") for g, v in WEIGHT_NORM):
        if not {g_name, v_name} <= tensors.keys() or f"{HEAD}.weight" in tensors:
            continue
        rest = dict(tensors)
        g, v = rest.pop(g_name), rest.pop(v_name)
        if v.shape != shape:
            return rest | {f"{HEAD}.weight": v}  # ill-shaped: it will be told, with what else does not fit
        if g.shape != (shape[0], 1):
            detail = f"ill-shaped: {g_name} is {list(g.shape)}, not {[shape[0], 1]}"
            raise _ill_shaped(g_name, g, [shape[0], 1], detail)
        v = v.float()
        return rest | {f"{HEAD}.weight": g.float() * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)}
    return tensors


def _ill_shaped(name: str, tensor: Tensor, expected: list[int], detail: str) -> Problem:
    """As the problem of any other tensor that does not fit."""
    entry = {"name": name, "expected": expected, "found": list(tensor.shape)}
    pointer = "/source_model/architecture"
    return Problem("source_model_mismatch", detail, pointer=pointer, missing=[], unexpected=[], ill_shaped=[entry])


def in_plain_torch(name: str, classes: int, netB: nn.Sequential) -> list[str]:
    """Lines of Python that build `network` with torch and torchvision alone, the first of them imports. netB: of it."""
    linear = netB.bottleneck
    norm = f", bn=nn.BatchNorm1d({linear.out_features})" if "bn" in dict(netB.named_children()) else ""
    return [
        "import torchvision; from collections import OrderedDict; from torch import nn",
        f"netF = torchvision.models.get_model({name!r}, weights=None)",
        "netF.fc = nn.Identity()",
        f"netB = nn.Sequential(OrderedDict(bottleneck=nn.Linear({linear.in_features}, {linear.out_features}){norm}))",
        f"netC = nn.Sequential(OrderedDict(fc=nn.Linear({linear.out_features}, {classes})))",
        "model = nn.Sequential(OrderedDict(netF=netF, netB=netB, netC=netC))",
    ]
