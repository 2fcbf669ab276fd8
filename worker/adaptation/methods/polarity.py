"""Whether T starts from the sensor's image or from its negative.

What is bright in RGB may be dark to a sensor: the sky in thermal infrared, what is near in depth by millimetres. A T that starts on
the wrong side is still there when its statistics are those of RGB: it has then made dark things out of bright skies. The pairs tell
the side before anything is trained (ours).
"""

from __future__ import annotations

import numpy as np
import torch

from worker.adaptation.evaluation import centre_pairs, chunks, spread
from worker.adaptation.events import Logged
from worker.adaptation.job import Job
from worker.adaptation.translator import ResidualTranslator, Translator

IMAGES = 256
"""Pairs at most, evenly spread over those that T is trained on."""


def choose(job: Job, T: Translator, training: np.ndarray) -> None:
    """Sets T.inverted as the settings say, or as the pairs do. The paper's T has no such thing, and stays."""
    if not isinstance(T, ResidualTranslator):
        return
    wanted = job.spec.settings.bridging.polarity
    if wanted == "auto":
        r = correlation(job, spread(training, IMAGES))
        start = "its negative" if r < 0 else "the image as it is"
        job.journal(Logged(message=f"bridging: brightness of the pairs correlates by {r:+.2f}, so T starts from {start}"))
        wanted = "invert" if r < 0 else "keep"
    T.inverted.fill_(wanted == "invert")


def told(T: Translator) -> dict[str, bool]:
    """For the report."""
    return {"inverted": bool(T.inverted)} if isinstance(T, ResidualTranslator) else {}


def correlation(job: Job, index: np.ndarray) -> float:
    """Of brightness in the sensor's image and in RGB, over all pixels of some pairs: Pearson's r in [-1, 1]; 0 where one of
    the two never varies."""
    n, sums = 0, torch.zeros(5, dtype=torch.float64)
    for part in chunks(index):
        source, target = centre_pairs(job.pairs, part, job.spec.source_model.input.size)
        x, y = target.double().mean(1), source.double().mean(1)
        n += x.numel()
        sums += torch.stack([x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])
    x, y, xx, yy, xy = (sums / n).tolist()
    of_x, of_y = xx - x * x, yy - y * y
    return (xy - x * y) / (of_x * of_y) ** 0.5 if min(of_x, of_y) > 1e-9 else 0.0
