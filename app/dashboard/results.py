"""A job's result as the rows of a table: each measure of the source model as it is beside that of the adapted one. What a job's
process says of itself is data, to be doubted: what is no number there is a dash here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.dashboard.formats import figure, share

VERDICTS = {"deploy": "Deploy", "look_closer": "Look closer", "do_not_deploy": "Do not deploy"}
MODELS = {"source_only": "Source model as it is", "bridged": "Teacher: the source model behind T", "adapted": "Adapted model"}


@dataclass(frozen=True)
class Measure:
    group: str
    name: str
    words: str
    shown: Callable[[float | None], str]


MEASURES = (
    Measure("accuracy", "accuracy", "Accuracy", share),
    Measure("accuracy", "balanced_accuracy", "Balanced accuracy", share),
    Measure("evidence", "entropy_share", "Entropy of the predictions, of ln K", share),
    Measure("evidence", "effective_classes", "Effective classes", figure),
    Measure("evidence", "largest_class_share", "Most frequent class", share),
    Measure("pairs", "ssim", "SSIM to RGB", figure),
    Measure("pairs", "psnr", "PSNR to RGB, dB", figure),
    Measure("pairs", "feature_distance_ratio", "Feature distance, after / before", figure),
)
GROUPS = {
    "accuracy": "On the labelled evaluation set",
    "evidence": "Without labels, on the target images",
    "pairs": "Without labels, on held-out pairs",
}


@dataclass(frozen=True)
class Row:
    measure: Measure
    values: dict[str, str]
    """By model; of the models that any measure knows."""


def rows(result: dict[str, Any] | None) -> list[Row]:
    """The measures that there is a number of."""
    numbers = {(m, model): number(result, m.group, model, m.name) for m in MEASURES for model in MODELS}
    models = [model for model in MODELS if any(numbers[m, model] is not None for m in MEASURES)]
    return [
        Row(m, {model: m.shown(numbers[m, model]) for model in models})
        for m in MEASURES
        if any(numbers[m, model] is not None for model in models)
    ]


def number(found: Any, *path: str) -> float | None:
    """What lies there, if it is a number."""
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    try:
        return float(found)
    except OverflowError:  # JSON's integers have no end
        return None


def verdict(result: dict[str, Any] | None) -> str | None:
    """What the job came to, if it is one of VERDICTS."""
    found = (result or {}).get("verdict")
    return found if isinstance(found, str) and found in VERDICTS else None
