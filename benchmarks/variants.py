"""What is run, by name: compare.py runs one of these tables, ablate.py another. A variant is a method and the settings in
which it differs from the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.method_settings import LossWeights, Settings

ORACLE = "oracle"
"""Fine-tuned on target labels: what they would be worth. No method of the service."""
DEFAULT = "tgmb_tgkt"
PAPER_WEIGHTS = ("rec", "d", "im", "kl", "feat", "self")
STAGE_1_WEIGHTS = ("rec", "rec_f", "d", "im", "bn_s")


@dataclass(frozen=True)
class Variant:
    """also: further rows that the run gives, variant -> the model of its report. together: with the source models of the other
    seeds beside its own."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    also: dict[str, str] = field(default_factory=dict)
    together: bool = False


COMPARE: dict[str, Variant] = {
    "source_only": Variant("source_only"),
    "shot": Variant("shot"),
    "socket": Variant("socket"),
    "socket_tgmb": Variant("socket_tgmb"),
    "tgmb": Variant("tgmb"),
    DEFAULT: Variant("tgmb_tgkt", also={"tgmb": "bridged"}),
    ORACLE: Variant(ORACLE),
}

_OURS = Settings().transfer
SOCKET_GRID: dict[str, Variant] = {
    "socket, lr x 3": Variant("socket", {"transfer": {"lr": 3 * Settings(preset="socket").transfer.lr}}),
    "socket, our optimiser": Variant(
        "socket",
        {"transfer": {name: getattr(_OURS, name) for name in ("optimizer", "lr", "warmup", "batch_norm")}},
    ),
}
"""Around SOCKET's published settings, which are `socket` itself: a longer step, and what this project trains its own method by."""

TOGETHER: dict[str, Variant] = {
    "source_only, all sources": Variant("source_only", together=True),
    "socket, all sources": Variant("socket", together=True),
    "tgmb_tgkt, all sources": Variant(DEFAULT, together=True),
    "tgmb_tgkt, all sources, mixing learned": Variant(DEFAULT, {"transfer": {"mixing": "learned"}}, together=True),
}
"""The source models of all seeds in one job. A row's seeds share them, and differ in the job's own seed alone."""


def _each_off(names: tuple[str, ...], settings: dict[str, Any], prefix: str) -> dict[str, Variant]:
    on = Settings.model_validate(settings).weights
    return {
        f"{prefix}without {name}": Variant(DEFAULT, settings | {"weights": {name: 0.0}})
        for name in names
        if getattr(on, name) > 0
    }


ABLATE: dict[str, Variant] = {
    DEFAULT: COMPARE[DEFAULT],
    **_each_off(tuple(LossWeights.model_fields), {}, ""),
    "without bridging": Variant(
        DEFAULT,
        {
            "weights": dict.fromkeys(STAGE_1_WEIGHTS, 0.0),
            "bridging": {"polarity": "keep"},
            "transfer": {"kl_by_score": False},  # by its score such a T would teach nothing: that is `without kl`
        },
    ),
    "T from the image as it is": Variant(DEFAULT, {"bridging": {"polarity": "keep"}}),
    "paper's translator": Variant(DEFAULT, {"bridging": {"translator": "paper"}}),
    "relevant or not": Variant(DEFAULT, {"bridging": {"by_relevance": False}}),
    "T's last weights": Variant(DEFAULT, {"bridging": {"ema": 0.0}}),
    "without calibration": Variant(DEFAULT, {"bridging": {"calibration": "never"}}),
    "calibration always": Variant(DEFAULT, {"bridging": {"calibration": "always"}}),
    "L_feat, relevant or not": Variant(DEFAULT, {"transfer": {"feat_by_relevance": False}}),
    "more L_IM": Variant(DEFAULT, {"weights": {"im_t": 0.3}}),
    "batch statistics": Variant(DEFAULT, {"transfer": {"batch_norm": "batch"}}),
    "SOCKET's optimiser": Variant(DEFAULT, {"transfer": {"optimizer": "sgd", "lr": 1e-3, "warmup": 0}}),
    "mean-square L_feat": Variant(DEFAULT, {"transfer": {"feat_distance": "mean_square"}}),
    "teacher whatever its score": Variant(DEFAULT, {"transfer": {"kl_by_score": False}}),
    "teacher sure or not": Variant(DEFAULT, {"transfer": {"kl_by_confidence": False}}),
    "paper": Variant(DEFAULT, {"preset": "paper"}),
    **_each_off(PAPER_WEIGHTS, {"preset": "paper"}, "paper, "),
}
"""Every loss off in turn, and every part of ours. `without bridging`: stage 1 trains nothing, T repeats the channel. `without kl` runs no stage 1."""

BRIDGING: dict[str, Variant] = {
    "tgmb": COMPARE["tgmb"],
    "tgmb from the image as it is": Variant("tgmb", {"bridging": {"polarity": "keep"}}),
    "tgmb, relevant or not": Variant("tgmb", {"bridging": {"by_relevance": False}}),
    "tgmb, L_BN alone": Variant("tgmb", {"weights": dict.fromkeys(("rec", "rec_f", "d", "im"), 0.0)}),
    "tgmb, without im": Variant("tgmb", {"weights": {"im": 0.0}}),
    "tgmb, last weights": Variant("tgmb", {"bridging": {"ema": 0.0}}),
    "tgmb, without calibration": Variant("tgmb", {"bridging": {"calibration": "never"}}),
    "tgmb, paper": Variant("tgmb", {"preset": "paper"}),
}
"""Stage 1 by itself: T decides what L_KL is worth, and costs a third of a whole run to look at."""
