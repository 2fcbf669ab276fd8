"""A classifier of torchvision, timm or SHOT as the paper has it: logits = h(f(x)), f the extractor, h the last linear layer.

The last linear layer is found by running the network once, not configured, and the split is checked: h(f(x)) must equal
what the whole network says.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from app.errors import Problem, few
from app.spec import InputSpec, SourceModelFile
from worker.adaptation import architectures, shot_checkpoint
from worker.adaptation.state_dict_file import read

NAMES_IN_CONTEXT = 50


class Classifier(nn.Module):
    """One network split as f and h.

    f: images, normalised, to features [N, D]. h: nn.Linear, features to logits [N, K]. head: the dotted name that h has
    in the architecture. architecture: `torchvision/...`, `timm/...` or `shot/...`. Carries its own normalisation (`mean`,
    `std`), which is no part of its state_dict.
    """

    def __init__(self, f: nn.Module, h: nn.Linear, head: str, architecture: str, input: InputSpec) -> None:
        super().__init__()
        self.f, self.h, self.head, self.architecture = f, h, head, architecture
        self.register_buffer("mean", torch.tensor(input.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(input.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: RGB in [0, 1], [N, 3, H, W]. Returns features [N, D] and logits [N, K]."""
        features = self.f((x - self.mean) / self.std)
        return features, self.h(features)

    @property
    def members(self) -> tuple[Classifier, ...]:
        """Itself: an Ensemble has several."""
        return (self,)

    @property
    def width(self) -> int:
        """D."""
        return self.h.in_features

    def bottleneck(self) -> list[nn.Parameter]:
        """The parameters of f that SHOT and SOCKET train at ten times the rate of the rest: those of netB. Of `torchvision/...`
        and `timm/...`: none."""
        return list(self.f.netB.parameters()) if self.architecture.startswith("shot/") else []


def build(architecture: str, classes: int, input: InputSpec) -> Classifier:
    """The architecture with `classes` outputs and fresh weights, in training mode; of `shot/...` with the bottleneck that
    SHOT gives it. Raises Problem unknown_architecture (with the nearest names), unsupported_architecture (no last linear
    layer makes the logits) or input_too_small."""
    network = architectures.network(architecture, classes, input)
    return _split(network, _find_head(network, architecture, classes, input), architecture, input)


def load(source_model: SourceModelFile, path: Path) -> Classifier:
    """The source model in `path`, fp32, in eval mode. Raises Problem as `build` and `state_dict_file.read` do, and
    source_model_mismatch (context: missing, unexpected, ill_shaped) or source_model_not_finite (context: names)."""
    tensors = read(path)
    architecture, classes = source_model.architecture, len(source_model.classes)
    bottleneck = None
    if architecture.startswith("shot/"):
        tensors, bottleneck = shot_checkpoint.plain(tensors, classes)
    # Fresh weights are drawn only to be overwritten: the caller's generator should not notice.
    with torch.random.fork_rng(devices=[]):
        network = architectures.network(architecture, classes, source_model.input, bottleneck)
        head = _find_head(network, architecture, classes, source_model.input)
    auxiliary = architectures.AUXILIARY.get(architecture)
    if auxiliary is not None:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(auxiliary)}
    _fill(network, head, tensors)
    return _split(network, head, architecture, source_model.input).eval()


def reordered(classifier: Classifier, order: Sequence[int]) -> Classifier:
    """The classifier with its outputs in another order: output k is what was output order[k]. Its own h is changed."""
    with torch.no_grad():
        for parameter in classifier.h.parameters():
            parameter.copy_(parameter[list(order)])
    return classifier


def weights(classifier: Classifier) -> dict[str, Tensor]:
    """The tensors of one source model under the architecture's own names, as contiguous CPU copies that share no memory: what
    load_state_dict(strict=True) of the library's plain model takes. Running statistics of batch norms are among them."""
    tensors = classifier.f.state_dict()
    tensors.update({f"{classifier.head}.{name}": value for name, value in classifier.h.state_dict().items()})
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def _find_head(network: nn.Module, architecture: str, classes: int, input: InputSpec) -> str:
    """The dotted name of the linear layer whose output is the network's output, found by running it on noise."""
    linear = {module: name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    heads = [module for module in linear if module.out_features == classes]
    fresh = [(h.weight, h.weight.detach().clone()) for h in heads]
    training = network.training
    last: dict[nn.Module, Tensor] = {}
    handles = [h.register_forward_hook(lambda module, _, output: last.__setitem__(module, output)) for h in heads]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, input.size, input.size, generator=generator)
    network.eval()
    try:
        with torch.no_grad():
            # Some heads start at zero, where every split would look right.
            for weight, value in fresh:
                weight.copy_(torch.randn(value.shape, generator=generator) * 0.05)
            try:
                output = network(x)
            except (RuntimeError, ValueError, AssertionError, TypeError, IndexError, ZeroDivisionError) as error:
                raise architectures.cannot_take(architecture, classes, input, error) from error
            found = [h for h, made in last.items() if isinstance(output, Tensor) and _same(made, output)]
            if not found or output.shape != (2, classes):
                detail = f"{architecture} does not end in one linear layer with {classes} outputs"
                raise Problem("unsupported_architecture", detail, pointer=architectures.POINTER)
            h = found[-1]
            name = linear[h]
            network.set_submodule(name, nn.Identity())
            try:
                features = network(x)
                whole = isinstance(features, Tensor) and features.ndim == 2 and _same(h(features), output)
            finally:
                network.set_submodule(name, h)
            if not whole:
                detail = f"{architecture} does more with its features than its last linear layer {name!r} says"
                raise Problem("unsupported_architecture", detail, pointer=architectures.POINTER)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for weight, value in fresh:
                weight.copy_(value)
        network.train(training)
    return name


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _split(network: nn.Module, head: str, architecture: str, input: InputSpec) -> Classifier:
    h = network.get_submodule(head)
    network.set_submodule(head, nn.Identity())
    return Classifier(network, h, head, architecture, input)


def _fill(network: nn.Module, head: str, tensors: dict[str, Tensor]) -> None:
    """Copy the tensors into the network, checked: names and shapes first, so that the values read are bounded by the
    architecture whatever the file claims; then that they are finite."""
    own = network.state_dict()
    ill_shaped = [
        {"name": name, "expected": list(own[name].shape), "found": list(value.shape)}
        for name, value in tensors.items()
        if name in own and own[name].shape != value.shape
    ]
    wrong = {entry["name"] for entry in ill_shaped}
    state = OrderedDict((name, value) for name, value in tensors.items() if name not in wrong)
    if tensors.keys() == own.keys():
        # Names as of today, so today's version: without one, some modules look for names of earlier releases.
        state._metadata = own._metadata
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            missing, unexpected = network.load_state_dict(state, strict=False)
    except (AssertionError, RuntimeError):  # a module that insists on a version, which foreign names do not have
        missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    derived = {name for name, _ in network.named_buffers()} - own.keys()  # once saved, now computed
    missing = [name for name in missing if name not in wrong and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in unexpected if name not in derived]
    if missing or unexpected or ill_shaped:
        raise _mismatch(head, missing, unexpected, ill_shaped)
    infinite = [name for name, value in network.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
    if infinite:
        detail = f"NaN or infinite values in {len(infinite)} tensors: {few(infinite)}"
        raise Problem("source_model_not_finite", detail, pointer="/source_model", names=infinite[:NAMES_IN_CONTEXT])


def _mismatch(head: str, missing: list[str], unexpected: list[str], ill_shaped: list[dict]) -> Problem:
    said = []
    if ill_shaped:
        shown = [f"{entry['name'][:200]} is {entry['found']}, not {entry['expected']}" for entry in ill_shaped]
        said.append(f"ill-shaped: {few(shown, 3)}")
    if missing:
        said.append(f"missing: {few(missing)}")
    if unexpected:
        said.append(f"unexpected: {few([name[:200] for name in unexpected])}")
    pointer = architectures.POINTER
    at_head = [entry for entry in ill_shaped if entry["name"] in (f"{head}.weight", f"{head}.bias")]
    rest_fits = all(entry["found"][1:] == entry["expected"][1:] for entry in at_head)
    if at_head and len(at_head) == len(ill_shaped) and rest_fits and not missing and not unexpected:
        pointer = "/source_model/classes"
        found, expected = (at_head[0][key][0] if at_head[0][key] else 0 for key in ("found", "expected"))
        said.insert(0, f"the model has {found} outputs, and {expected} classes are named")
    return Problem(
        "source_model_mismatch",
        "; ".join(said),
        pointer=pointer,
        missing=missing[:NAMES_IN_CONTEXT],
        unexpected=[name[:200] for name in unexpected[:NAMES_IN_CONTEXT]],
        ill_shaped=[entry | {"name": entry["name"][:200]} for entry in ill_shaped[:NAMES_IN_CONTEXT]],
    )
