"""A row of the ablation is what its name says, and nothing else."""

from __future__ import annotations

import pytest

from app.method_settings import LossWeights, Settings
from benchmarks.variants import ABLATE, BRIDGING, COMPARE, DEFAULT, SOCKET_GRID, TOGETHER


def flat(settings: dict) -> dict:
    """Every setting by its path, with all defaults filled in; `preset` only says where they come from."""
    document = Settings.model_validate(settings).model_dump(exclude={"preset"})
    groups = {f"{group}.{name}": value for group, of in document.items() if isinstance(of, dict) for name, value in of.items()}
    return groups | {name: value for name, value in document.items() if not isinstance(value, dict)}


def changed(variant: str, base: str) -> dict:
    ours, theirs = (flat((ABLATE | BRIDGING)[name].settings) for name in (variant, base))
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
    assert changed("T from the image as it is", DEFAULT) == {"bridging.polarity": "keep"}
    assert changed("relevant or not", DEFAULT) == {"bridging.by_relevance": False}
    assert changed("T's last weights", DEFAULT) == {"bridging.ema": 0.0}
    off = changed("without bridging", DEFAULT)
    assert off.pop("bridging.polarity") == "keep"
    assert off.pop("transfer.kl_by_score") is False, "else the teacher would be left out too"
    assert set(off.values()) == {0.0} and set(off) == {f"weights.{name}" for name in ("rec", "rec_f", "d", "im", "bn_s")}


def test_the_rows_of_stage_1_are_what_they_say():
    assert {variant.method for variant in BRIDGING.values()} == {"tgmb"}
    assert changed("tgmb from the image as it is", "tgmb") == {"bridging.polarity": "keep"}
    assert changed("tgmb, relevant or not", "tgmb") == {"bridging.by_relevance": False}
    assert changed("tgmb, L_BN alone", "tgmb") == {f"weights.{name}": 0.0 for name in ("rec", "rec_f", "d", "im")}
    assert changed("tgmb, without im", "tgmb") == {"weights.im": 0.0}
    assert changed("tgmb, last weights", "tgmb") == {"bridging.ema": 0.0}


def test_the_rows_of_several_sources_are_the_methods_themselves():
    for name, variant in TOGETHER.items():
        method, _, _ = name.partition(",")
        assert variant.together and variant.method == COMPARE[method].method
        assert variant.settings == ({"transfer": {"mixing": "learned"}} if "learned" in name else {})


def test_no_two_rows_are_the_same():
    every = [(variant.method, flat(variant.settings)) for variant in [*ABLATE.values(), *BRIDGING.values()]]
    assert [one for i, one in enumerate(every) if one in every[:i]] == []
    grid = [flat({"preset": "socket"} | variant.settings) for variant in [COMPARE["socket"], *SOCKET_GRID.values()]]
    assert [one for i, one in enumerate(grid) if one in grid[:i]] == []
