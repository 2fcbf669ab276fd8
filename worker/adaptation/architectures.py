"""The networks of torchvision, timm and SHOT by their names, with fresh weights. Nothing here goes to the network
(`pretrained` is never set)."""

from __future__ import annotations

import difflib

import torchvision
from torch import nn

from app.errors import Problem
from app.spec import InputSpec
from worker.adaptation import shot_checkpoint
from worker.adaptation.shot_checkpoint import Bottleneck

POINTER = "/source_model/architecture"
AUXILIARY = {"torchvision/googlenet": ("aux1.", "aux2."), "torchvision/inception_v3": ("AuxLogits.",)}
"""Heads that only training needs: tensors of a file under these names are left out, as the heads are."""


def network(architecture: str, classes: int, input: InputSpec, bottleneck: Bottleneck | None = None) -> nn.Module:
    """Raises Problem unknown_architecture (with the nearest names), unsupported_architecture or input_too_small."""
    library, name = architecture.split("/", 1)
    if library == "shot":
        if name not in shot_checkpoint.RESNETS:
            raise _unknown("shot", name, list(shot_checkpoint.RESNETS))
        return shot_checkpoint.network(name, classes, bottleneck or Bottleneck())
    try:
        made = _torchvision(name, classes, input) if library == "torchvision" else _timm(name, classes, input)
    except (
        RuntimeError,
        ValueError,
        AssertionError,
        TypeError,
        KeyError,
        IndexError,
        ZeroDivisionError,
        AttributeError,
    ) as error:
        raise cannot_take(architecture, classes, input, error) from error
    return made.float()


def _torchvision(name: str, classes: int, input: InputSpec) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    settings: dict[str, object] = {}
    if name.startswith("vit_"):
        settings["image_size"] = input.size
    if name == "maxvit_t":
        settings["input_size"] = (input.size, input.size)
    if f"torchvision/{name}" in AUXILIARY:
        settings |= {"aux_logits": False, "init_weights": True}
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **settings)


def _timm(name: str, classes: int, input: InputSpec) -> nn.Module:
    import timm  # takes seconds to import: only where it is asked for

    base, _, tag = name.partition(".")
    known = timm.list_models()
    if base not in known:
        raise _unknown("timm", base, known)
    if tag and name not in (tagged := timm.list_models(f"{base}.*", pretrained=True)):
        raise _unknown("timm", name, [*tagged, base])
    settings = {"pretrained": False, "num_classes": classes}
    try:
        return timm.create_model(name, img_size=input.size, **settings)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return timm.create_model(name, **settings)


def _unknown(library: str, name: str, known: list[str]) -> Problem:
    near = [f"{library}/{other}" for other in difflib.get_close_matches(name, known, n=5, cutoff=0.5)]
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return Problem("unknown_architecture", f"{library} has no classifier {name!r}{hint}", pointer=POINTER, nearest=near)


def _own_size(architecture: str) -> int:
    """The input size that the architecture was made for."""
    library, name = architecture.split("/", 1)
    if library != "timm":
        return 299 if name == "inception_v3" else 224
    from timm.models import get_pretrained_cfg

    return (get_pretrained_cfg(name) or get_pretrained_cfg("resnet18")).input_size[-1]


def cannot_take(architecture: str, classes: int, input: InputSpec, cause: Exception) -> Problem:
    """Why the network could not be run at input.size: the size, or the architecture itself."""
    own = _own_size(architecture)
    said = f"{type(cause).__name__}: {str(cause)[:200]}"
    if input.size < own:
        detail = f"{architecture} cannot take {input.size} x {input.size} pixels; it was made for {own} x {own} ({said})"
        return Problem("input_too_small", detail, pointer="/source_model/input/size")
    detail = f"{architecture} with {classes} classes cannot be run at {input.size} x {input.size} pixels ({said})"
    return Problem("unsupported_architecture", detail, pointer=POINTER)
