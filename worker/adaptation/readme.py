"""README.md: the model card, in the format of Hugging Face. Nothing here goes to the network."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.spec import FORMATS
from worker.adaptation.report import MODELS, VERDICTS, figure

TASK = "image-classification"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+.!|~-])")


def write(card: dict[str, Any], prepared: dict[str, Any], report: dict[str, Any]) -> str:
    """card: model.json; prepared: preprocessing.json; report: report.json."""
    environment = Environment(
        loader=PackageLoader("worker.adaptation"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - this is Markdown: what a client has written passes `plain` or `code`
    )
    environment.filters |= {
        "plain": plain,
        "code": code,
        "figure": figure,
        "share": lambda value: "–" if value is None else f"{100 * value:.1f} %",
    }
    body = environment.get_template("README.md").render(
        title=title(card, report),
        card=card,
        prepared=prepared,
        report=report,
        models=MODELS,
        verdicts=VERDICTS,
        loading=loading(card, prepared),
    )
    return str(ModelCard(f"---\n{front_matter(card, report).to_yaml()}\n---\n\n{body}"))


def front_matter(card: dict[str, Any], report: dict[str, Any]) -> ModelCardData:
    """What the Hub reads. The licence is the source model's, which nobody told us."""
    labelled, modality = report["evaluation"]["labelled"], card["sensor"]["modality"]
    results = []
    if labelled is not None:
        images = {
            "task_type": TASK,
            "dataset_type": "private",
            "dataset_name": f"Evaluation set, {labelled['images']} {modality} images",
        }
        for metric, name in (("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy")):
            results.append(EvalResult(**images, metric_type=metric, metric_name=name, metric_value=labelled["adapted"][metric]))
    published = [output for output, told in report["outputs"].items() if told["published"]]
    tags = [TASK, "source-free-domain-adaptation", "cross-modal", modality, *published]
    return ModelCardData(
        license="unknown",
        base_model=card["architecture"].split(" + "),
        pipeline_tag=TASK,
        library_name="pytorch",
        tags=tags,
        metrics=["accuracy"] if results else None,
        model_name=title(card, report) if results else None,
        eval_results=results or None,
    )


def title(card: dict[str, Any], report: dict[str, Any]) -> str:
    return " ".join((report["name"] or f"{card['architecture']} for {card['sensor']['modality']}").split())


def loading(card: dict[str, Any], prepared: dict[str, Any]) -> dict[str, list[str]]:
    """A few lines of Python for each published file, which load it; of a model, they answer two empty images as `logits`."""
    lines: dict[str, list[str]] = {}
    if card["translator"] is not None and card["translator"]["needed"]:
        lines[card["translator"]["file"]] = card["translator"]["load"]
    for taken in prepared["inputs"]:
        file, shape = taken["file"], ", ".join(str(n) for n in taken["shape"][1:])
        if file == FORMATS["safetensors"]:
            lines[file] = [*card["load"], "import torch", f"logits = model(torch.zeros(2, {shape}))"]
        elif file == FORMATS["torch_export"]:
            lines[file] = [
                "import torch",
                f'model = torch.export.load("{file}").module()',
                f"logits = model(torch.zeros(2, {shape}))",
            ]
        else:
            feed = f'{{"images": np.zeros((2, {shape}), np.float32)}}'
            lines[file] = [
                "import numpy as np; import onnxruntime",
                f'session = onnxruntime.InferenceSession("{file}")',
                f"(logits,) = session.run(None, {feed})",
            ]
    return lines


def plain(text: object) -> str:
    """As words alone, whatever they are: neither Markdown nor HTML, on one line.

    >>> plain("<b> [x](y)")
    '&lt;b&gt; \\\\[x\\\\]\\\\(y\\\\)'
    """
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def code(value: Any) -> str:
    """JSON that no fence of a code block is in."""
    return json.dumps(value, ensure_ascii=False, indent=1).replace("`", "\\u0060")
