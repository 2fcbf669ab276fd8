"""A row of the ablation is what its name says, and nothing else."""

from __future__ import annotations

import pytest

from app.method_settings import LossWeights, Settings
from benchmarks.variants import ABLATE, COMPARE, DEFAULT, SOCKET_GRID


def flat(settings: dict) -> dict:
    """Every setting by its path, with all defaults filled in; `preset` only says where they come from."""
    document = Settings.model_validate(settings).model_dump(exclude={"preset"})
    groups = {f"{group}.{name}": value for group, of in document.items() if isinstance(of, dict) for name, value in of.items()}
    return groups | {name: value for name, value in document.items() if not isinstance(value, dict)}


def changed(variant: str, base: str) -> dict:
    ours, theirs = flat(ABLATE[variant].settings), flat(ABLATE[base].settings)
    return {name: value for name, value in ours.items() if value != theirs[name]}


@pytest.mark.parametrize("weight", [name for name, field in LossWeights.model_fields.items() if field.default > 0])
def test_every_weight_is_switched_off_once_and_alone(weight):
    assert changed(f"without {weight}", DEFAULT) == {f"weights.{weight}": 0.0}


@pytest.mark.parametrize("weight", ["rec", "d", "im", "kl", "feat", "self"])
def test_every_weight_of_the_paper_is_switched_off_alone(weight):
    assert changed(f"paper, without {weight}", "paper") == {f"weights.{weight}": 0.0}


def test_the_other_rows_are_what_they_say():
    assert changed("paper's translator", DEFAULT) == {"bridging.translator": "paper"}
    assert changed("batch statistics", DEFAULT) == {"transfer.batch_norm": "batch"}
    assert changed("mean-square L_feat", DEFAULT) == {"transfer.feat_distance": "mean_square"}
    assert changed("teacher whatever its score", DEFAULT) == {"transfer.kl_by_score": False}
    assert changed("teacher sure or not", DEFAULT) == {"transfer.kl_by_confidence": False}
    off = changed("without bridging", DEFAULT)
    assert set(off.values()) == {0.0} and set(off) == {f"weights.{name}" for name in ("rec", "rec_f", "d", "im", "bn_s")}


def test_no_two_rows_are_the_same():
    every = [(variant.method, flat(variant.settings)) for variant in ABLATE.values()]
    assert [one for i, one in enumerate(every) if one in every[:i]] == []
    grid = [flat({"preset": "socket"} | variant.settings) for variant in [COMPARE["socket"], *SOCKET_GRID.values()]]
    assert [one for i, one in enumerate(grid) if one in grid[:i]] == []
