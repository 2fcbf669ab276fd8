"""What of a method can be set, with every default and where it comes from.

The loss weights are the symbols of Zhu, Chen and Wang (arXiv 2401.05014): rec, d, im (TGMB) and kl, feat, self (TGKT); the others
are ours or SOCKET's.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Refuses what it does not know; never changes once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class LossWeights(Strict):
    """Each loss is off at 0: it is then not computed at all."""

    rec: float = Field(1.0, ge=0)
    """L_rec, the translation of a pair against its RGB image. The paper gives it no weight: 1."""
    rec_f: float = Field(1.0, ge=0)
    """L_rec_f, the same in the features of the source model (ours)."""
    d: float = Field(0.01, ge=0)
    """alpha_d of L_D, the adversary that tells translated TI from translated TR features. At 0.1 it outweighs L_rec, whose
    mean square is a few hundredths, and cost 14 points on rendered depth (one seed, an early scene set)."""
    im: float = Field(0.1, ge=0)
    """alpha_im of L_IM, information maximisation on the source model's predictions for translated TR images. It wants all classes
    alike often: on thermal images of four classes, of which one is four in ten, T went on to make them so, and lost 3 to 23 points
    by it (drone_ir, seed 0, two trainings of the source model). So it counts as far as the pairs are relevant
    (`bridging.by_relevance`), which are next to nothing there."""
    bn_s: float = Field(1.0, ge=0)
    """L_BN in stage 1: statistics of translated TR images in the batch norms of the source model against those of the
    images it was trained on, which its running statistics keep (ours)."""
    kl: float = Field(3.0, ge=0)
    """L_KL, teacher on the translated image against student on the raw one. The paper gives it no weight: 1."""
    feat: float = Field(5.0, ge=0)
    """beta_f of L_feat."""
    self: float = Field(0.1, ge=0)
    """beta_self of L_self. SHOT's and SOCKET's: 0.3."""
    im_t: float = Field(0.1, ge=0)
    """L_IM on the target model's own predictions. SHOT's and SOCKET's: 1; the paper's method has none."""
    bn_t: float = Field(3.0, ge=0)
    """L_BN on the target model: statistics of raw target images in its batch norms against the source model's running
    ones. After SOCKET, whose L_d has another scale; the paper's method has none."""

    def only(self, *names: str) -> LossWeights:
        """These as they are, and every other loss off: so a loss that is new is none of a baseline's."""
        return LossWeights(**{name: getattr(self, name) if name in names else 0.0 for name in LossWeights.model_fields})


class BridgingSettings(Strict):
    """Stage 1, TGMB: trains the translator T."""

    translator: Literal["residual", "paper"] = "residual"
    """residual: encoder-decoder with a skip from the replicated input, untrained = replicate to 3 channels;
    paper: 1x1 convolution, batch norm, ReLU, 3x3 convolution."""
    polarity: Literal["auto", "keep", "invert"] = "auto"
    """Of the residual translator. invert: it starts from the negative of the sensor's image; auto: it does where that is how the
    pairs' brightness correlates with RGB, as on thermal images of day scenes, whose sky is dark."""
    steps: int = Field(600, ge=1, le=1_000_000)
    """At most this many; counted in steps, since a few hundred pairs make an epoch of nine."""
    batch_size: int = Field(32, ge=2, le=4096)
    """Of pairs, and as many target images."""
    lr: float = Field(1e-3, gt=0, le=10)
    """Of Adam, decayed as (1 + 10 p)^-0.75, p the progress in [0, 1]."""
    ema: float = Field(0.98, ge=0, lt=1)
    """T that is scored, kept and used has the moving average of the weights, of this decay; 0: the weights themselves."""
    by_relevance: bool = True
    """The weights of L_rec, L_rec_f, L_D and L_IM, and the pairs' part of the score, are multiplied by the relevance of the pairs: 1
    where their RGB images are to the source model's batch norms as its own training images, 0 where they are as far as the target
    images are. L_IM by itself has no pairs; but where none holds T, it leads to confident wrong classes."""
    calibration: Literal["auto", "always", "never"] = "auto"
    """Of the source model's batch norms, by target images, in place of training the residual translator: the calibrated model is then
    what `tgmb` publishes, and the teacher of `tgmb_tgkt`; `socket_tgmb` has no use for it, and T untrained. auto: where the relevance of
    the pairs is below 0.25, since nothing but statistics would hold T; never: as the paper has it."""
    held_out: float = Field(0.15, gt=0, le=0.5)
    """Share of the pairs, as one contiguous block, that is never trained on: early stopping and the report use it."""
    validate_every: int = Field(25, ge=1)
    """Steps between two looks at the held-out pairs."""
    patience: int = Field(8, ge=0)
    """Stop after this many validations without a better one; 0: never stop early."""


class TransferSettings(Strict):
    """Stage 2: trains the target model's extractor f_t."""

    epochs: int = Field(15, ge=1, le=10_000)
    """Default: SOCKET's."""
    batch_size: int = Field(32, ge=2, le=4096)
    """Of target images, and as many pairs. Default: SOCKET's."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Of f_t. sgd: with Nesterov momentum, as SHOT and SOCKET have it."""
    lr: float = Field(3e-4, gt=0, le=10)
    """Decayed as (1 + 10 p)^-0.75, p the progress in [0, 1]."""
    warmup: int = Field(20, ge=0)
    """Steps over which the learning rate comes up from 0."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd."""
    weight_decay: float = Field(1e-3, ge=0, le=1)
    """Of the optimiser. Default: SOCKET's."""
    batch_norm: Literal["frozen", "batch"] = "frozen"
    """frozen: f_t normalises by the running statistics of the source model, in training as it will in use; batch: by those
    of the batch, and learns running statistics of its own."""
    feat_distance: Literal["relative", "mean_square"] = "relative"
    """L_feat of tgmb_tgkt. relative: squared, over the squared length of the source features, so that beta_f means the
    same for every network; mean_square: the paper's."""
    mixing: Literal["uniform", "learned"] = "uniform"
    """Of the logits of several source models: all alike, or weights that are learned along with f_t, from alike."""
    feat_by_relevance: bool = True
    """L_feat of tgmb_tgkt is left out where the relevance of the pairs (`bridging.by_relevance`) is below 0.25: pairs of another domain
    tie the features to what the model is not for."""
    kl_by_score: bool = True
    """The weight of L_KL is multiplied by 1 less the score of T, which is 1 where T is no better than replicating and 0 where
    it is perfect: the teacher counts as far as T bridges."""
    kl_by_confidence: bool = True
    """Each image counts in L_KL as 1 - H(p_s) / ln K: a teacher that does not know does not teach."""


PUBLISHED = {"optimizer": "sgd", "lr": 1e-3, "warmup": 0, "momentum": 0.9, "weight_decay": 1e-3, "batch_norm": "batch"}
"""SOCKET's optimiser; of its learning rates that of the backbone, 1e-2 times 0.1."""
Preset = Literal["default", "paper", "socket"]
PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {
        "weights": {"im": 0.1, "rec_f": 0.0, "bn_s": 0.0, "kl": 1.0, "feat": 0.5, "self": 0.3, "im_t": 0.0, "bn_t": 0.0},
        "bridging": {"translator": "paper", "ema": 0.0, "by_relevance": False, "calibration": "never"},
        "transfer": {"feat_distance": "mean_square", "feat_by_relevance": False, "kl_by_score": False, "kl_by_confidence": False}
        | PUBLISHED,
    },
    "socket": {
        "weights": {"feat": 0.5, "self": 0.3, "im_t": 1.0, "bn_t": 0.5},
        "transfer": PUBLISHED,
    },
}


class Settings(Strict):
    preset: Preset = "default"
    """Where the settings that are not given come from. paper: the paper's method and nothing more; socket: what SOCKET
    published, which is what shot, socket and socket_tgmb take unless another preset is named."""
    weights: LossWeights = LossWeights()
    """Of the losses of both stages."""
    bridging: BridgingSettings = BridgingSettings()
    """Of stage 1."""
    transfer: TransferSettings = TransferSettings()
    """Of stage 2."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: the faster of the two on the device at hand, measured on the source model."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("preset"), str):
            return given
        preset = PRESETS.get(given["preset"], {})
        groups = {name: values | given.get(name, {}) for name, values in preset.items() if isinstance(given.get(name, {}), dict)}
        return given | groups
