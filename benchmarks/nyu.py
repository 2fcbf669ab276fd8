"""A job on real images through the running service: NYU Depth v2 scenes, RGB to depth.

    export MODALBRIDGE_DATA_ROOTS=/data          # in both terminals; DATA lies below it
    make serve                                   # in one
    make worker                                  # in the other
    python -m benchmarks.nyu --data /data/nyu --backbone /data/weights/tf_efficientnet_lite0_backbone_fp16.safetensors

DATA holds tr_train, tr_test (rgb/<class>, depth/<class>) and ti (rgb, depth). The source classifier is fine-tuned here from
the backbone on labelled RGB; the job sees tr_train/depth without labels, the pairs of ti, and tr_test/depth at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import httpx
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.client import follow, seconds, submit

ARCHITECTURE, SIZE, STORED, HALF = "tf_efficientnet_lite0", 96, 110, (0.5, 0.5, 0.5)


def read(folder: Path, classes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """RGB [N, 3, STORED, STORED] in [-1, 1], labels [N]."""
    found = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    pixels = []
    for path, _ in found:
        image = Image.open(path).convert("RGB")
        left = (image.width - image.height) // 2
        pixels.append(np.asarray(image.crop((left, 0, left + image.height, image.height)).resize((STORED, STORED))))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.tensor([label for _, label in found])


def fine_tune(data: Path, backbone: Path, classes: list[str], epochs: int, seed: int) -> tuple[torch.nn.Module, float]:
    """The source classifier and its accuracy on held-out RGB."""
    torch.manual_seed(seed)
    model = timm.create_model(ARCHITECTURE, num_classes=len(classes)).to(memory_format=torch.channels_last)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(backbone).items()}, strict=False)
    head = model.get_classifier()
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("classifier")]
    sgd = torch.optim.SGD(
        [{"params": body, "lr": 1e-2}, {"params": head.parameters(), "lr": 1e-1}], momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    images, labels = read(data / "tr_train/rgb", classes)
    steps = epochs * (len(images) // 32)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: (1 + 10 * step / steps) ** -0.75)
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(images))[: len(images) // 32 * 32].split(32):
            y, x = torch.randint(0, STORED - SIZE + 1, (2,)).tolist()
            crops = images[index, :, y : y + SIZE, x : x + SIZE]
            crops = torch.where(torch.rand(32, 1, 1, 1) < 0.5, crops.flip(-1), crops)
            loss = F.cross_entropy(model(crops.to(memory_format=torch.channels_last)), labels[index], label_smoothing=0.1)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            schedule.step()
    model.eval()
    images, labels = read(data / "tr_test/rgb", classes)
    edge = (STORED - SIZE) // 2
    with torch.inference_mode():
        guesses = torch.cat([model(part[..., edge : edge + SIZE, edge : edge + SIZE]).argmax(1) for part in images.split(64)])
    return model, (guesses == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--method", default="tgmb_tgkt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source-epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    data = given.data.resolve()
    if missing := [name for name in ("tr_train/depth", "tr_test/depth", "ti/rgb") if not (data / name).is_dir()]:
        raise SystemExit(f"{data} lacks {', '.join(missing)}: --data takes the folder of NYU Depth v2 in the layout above")

    classes = sorted(path.name for path in (data / "tr_train/rgb").iterdir())
    model, rgb_accuracy = fine_tune(data, given.backbone, classes, given.source_epochs, given.seed)
    print(f"source classifier on held-out RGB: {rgb_accuracy:.1%}", file=sys.stderr)
    request = {
        "name": "NYU Depth v2, RGB to depth",
        "source_model": {
            "architecture": f"timm/{ARCHITECTURE}",
            "classes": classes,
            "input": {"size": SIZE, "mean": HALF, "std": HALF, "crop_ratio": SIZE / STORED},
        },
        "data": {
            "target": {"uri": f"file://{data}/tr_train/depth"},
            "pairs": {"uri": f"file://{data}/ti"},
            "evaluation": {"uri": f"file://{data}/tr_test/depth"},
        },
        "method": given.method,
        "seed": given.seed,
        "settings": {"bridging": {"steps": given.steps}, "transfer": {"epochs": given.epochs}},
    }
    with tempfile.TemporaryDirectory() as folder, httpx.Client(base_url=given.url, timeout=60) as client:
        weights = Path(folder) / "source.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
        job = follow(client, submit(client, request, weights))
    outcome = {"status": job["status"], "source_on_rgb": rgb_accuracy, "result": job["result"], "error": job["error"]}
    print(json.dumps(outcome | ({"seconds": seconds(job)} if job["finished_at"] else {}), indent=1))
    raise SystemExit(job["status"] != "succeeded")


if __name__ == "__main__":
    main()
