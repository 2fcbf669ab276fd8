"""How mlflow.pyfunc loads a model that ModalBridge adapted. A copy of this lies beside each such model; it needs torch, with
torchvision or timm, and nothing of ModalBridge."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


def _load_pyfunc(path: str) -> Model:
    folder = Path(path)
    if (program := folder / "model.pt2").exists():
        return Model(torch.export.load(program).module())
    scope: dict[str, Any] = {}
    with contextlib.chdir(folder):  # the card's lines name model.safetensors alone
        exec("\n".join(json.loads(Path("model.json").read_text(encoding="utf-8"))["load"]), scope)  # noqa: S102
    return Model(scope["model"])


class Model:
    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """images: [n, C, H, W], alone or under the name `images`, as preprocessing.json says -> {"logits": [n, classes]}."""
        given = images["images"] if isinstance(images, dict) else images
        with torch.inference_mode():
            return {"logits": self.model(torch.from_numpy(np.asarray(given, dtype=np.float32))).numpy()}
