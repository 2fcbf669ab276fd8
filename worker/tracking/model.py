"""The folder `model` of a run, as MLflow's own tools load it: what lies in it besides the files that the job has published."""

from __future__ import annotations

import json
import platform
import uuid
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from app.spec import FORMATS

FOLDER = "model"
REPORTS = frozenset({"report.html", "report.json", "metrics.json"})
"""What a job publishes besides its model: these lie in the run's own folder."""
LOADER = Path(__file__).with_name("loader.py")
PRINTED = "modalbridge_loader"
"""The loader's name in the folder."""
PYTHON_ENV = "python_env.yaml"


@dataclass(frozen=True)
class Loading:
    """file: the one of the published that is loaded. takes: its entry in preprocessing.json."""

    file: str
    takes: dict[str, Any]


def loading(card: dict[str, Any], prepared: dict[str, Any]) -> Loading | None:
    """ONNX if it was asked for, else torch's own program, else the weights. None: they alone are there, and must be fed what only
    this project's translator makes. card: model.json; prepared: preprocessing.json."""
    published = {one["file"]: one for one in prepared["inputs"]}
    for output in ("onnx", "torch_export", "safetensors"):
        file = FORMATS[output]
        if file in published and not (output == "safetensors" and (card["translator"] or {}).get("needed")):
            return Loading(file, published[file])
    return None


def texts(found: Loading, card: dict[str, Any], *, run_id: str, created_at: str) -> dict[str, str]:
    """name -> text."""
    onnx = found.file == FORMATS["onnx"]
    python = platform.python_version()
    environment = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    pyfunc: dict[str, Any] = {"env": {"virtualenv": PYTHON_ENV}, "python_version": python}
    flavors: dict[str, Any] = {"python_function": pyfunc}
    if onnx:
        pyfunc |= {"loader_module": "mlflow.onnx", "data": found.file}
        flavors["onnx"] = {"data": found.file, "onnx_version": metadata.version("onnx"), "providers": ["CPUExecutionProvider"]}
    else:
        pyfunc |= {"loader_module": PRINTED, "code": "code"}
    described = {
        "artifact_path": FOLDER,
        "flavors": flavors,
        "mlflow_version": metadata.version("mlflow-skinny"),
        "model_uuid": uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{FOLDER}").hex,
        "run_id": run_id,
        "signature": _signature(found.takes, len(card["classes"])),
        "utc_time_created": created_at,
    }
    written = {
        "MLmodel": _as_yaml(described),
        PYTHON_ENV: _as_yaml(environment),
        "requirements.txt": "".join(f"{name}=={metadata.version(name)}\n" for name in _needed(found.file, card)),
    }
    return written if onnx else written | {f"code/{PRINTED}.py": LOADER.read_text(encoding="utf-8")}


def _needed(file: str, card: dict[str, Any]) -> list[str]:
    if file == FORMATS["onnx"]:
        return ["mlflow", "numpy", "onnx", "onnxruntime"]
    return ["mlflow", "numpy", "torch", "torchvision", "timm", "safetensors"]


def _signature(takes: dict[str, Any], classes: int) -> dict[str, Any]:
    """One tensor in, one out; any number of images."""

    def tensor(name: str, shape: list[int]) -> str:
        return json.dumps([{"name": name, "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": shape}}])

    return {"inputs": tensor("images", [-1, *takes["shape"][1:]]), "outputs": tensor("logits", [-1, classes]), "params": None}


def _as_yaml(value: dict[str, Any]) -> str:
    """JSON, which is YAML too."""
    return json.dumps(value, indent=1) + "\n"
