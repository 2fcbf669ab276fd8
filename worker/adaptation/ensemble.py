"""Several source models as one: a weighted sum of their logits, as DECISION (Ahmed et al., CVPR 2021) and SOCKET have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.adaptation.source_model import Classifier, weights


class Ensemble(nn.Module):
    """logits = sum_m w_m h_m(f_m(x)), w = softmax(mixing), uniform at first. features: those of the members side by side, each
    times the Frobenius norm of its h_m: a member does not outweigh another by the mere size of its numbers, but counts as far
    as they can move the logits.

    To a method it is a Classifier: the same `forward`, `members` and `width`.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.mixing = nn.Parameter(torch.zeros(len(members)))
        self.register_buffer("scale", torch.stack([member.h.weight.detach().norm() for member in members]), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: RGB in [0, 1], [N, 3, H, W]. Returns features [N, D], D of all members together, and logits [N, K]."""
        made = [member(x) for member in self.members]
        features = torch.cat([scale * f for scale, (f, _) in zip(self.scale, made, strict=True)], 1)
        return features, sum(w * logits for w, (_, logits) in zip(self.mixing.softmax(0), made, strict=True))

    def weights(self) -> list[float]:
        """The w_m, which sum to 1."""
        return self.mixing.detach().double().softmax(0).tolist()

    @property
    def width(self) -> int:
        """D."""
        return sum(member.width for member in self.members)


def tensors(model: Classifier | Ensemble) -> dict[str, Tensor]:
    """What model.safetensors holds: of one source model its tensors, of several each one's behind its place, `0.conv1.weight`."""
    if isinstance(model, Classifier):
        return weights(model)
    return {f"{m}.{name}": value for m, member in enumerate(model.members) for name, value in weights(member).items()}
