"""What each method trains, leaves alone, computes and warns of, on jobs of seconds."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import Problem
from app.method_settings import LossWeights
from worker.adaptation import losses
from worker.adaptation.source_model import Classifier
from worker.adaptation.translator import ResidualTranslator, build

OFF = dict.fromkeys(LossWeights.model_fields, 0.0)


def only(**weights: float) -> dict:
    """No loss but these, at these weights: what multiplies a weight by what a job turns out to be is off."""
    return {
        "settings": {
            "weights": OFF | weights,
            "bridging": {"by_relevance": False},
            "transfer": {"kl_by_score": False},
        }
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each loss and each network was computed in training; they are computed all the same."""
    counted: dict[str, int] = {}

    def counting(owner, name: str, label: str):
        real = getattr(owner, name)

        def count(*arguments, **named):
            if torch.is_grad_enabled():
                counted[label] = counted.get(label, 0) + 1
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, count)

    for name in ("L_rec", "L_rec_f", "L_D", "L_IM", "L_BN", "L_d", "L_KL", "L_feat", "L_feat_norm", "L_self"):
        counting(losses, name, name)
    counting(Classifier, "forward", "classifier")
    counting(ResidualTranslator, "forward", "T")
    return counted


@pytest.mark.parametrize(
    ("weights", "computed"),
    [
        ({"rec": 1}, {"L_rec", "T"}),
        ({"rec": 1, "d": 0.1}, {"L_rec", "L_D", "T", "classifier"}),
        ({"im": 0.1}, {"L_IM", "T", "classifier"}),
        ({"rec_f": 1}, {"L_rec_f", "T", "classifier"}),
        ({"bn_s": 1}, {"L_BN", "T", "classifier"}),
        ({}, set()),
    ],
)
def test_a_bridging_loss_of_weight_0_is_not_computed(adapt, calls, weights, computed):
    ran = adapt(method="tgmb", **only(**weights))
    assert calls.keys() == computed
    series = {name.split("/")[1] for name in ran.series if name.startswith("bridging/L_")}
    assert series == computed - {"T", "classifier"}


@pytest.mark.parametrize(
    ("weights", "computed"),
    [
        ({"kl": 1, "rec": 1}, {"L_KL", "classifier", "L_rec", "T"}),
        ({"feat": 1}, {"L_rec_f", "classifier"}),
        ({"self": 1}, {"L_self", "classifier"}),
        ({"im_t": 1}, {"L_IM", "classifier"}),
        ({"bn_t": 1}, {"L_BN", "classifier"}),
        ({}, set()),
    ],
)
def test_a_transfer_loss_of_weight_0_is_not_computed(adapt, calls, weights, computed):
    ran = adapt(**only(**weights))
    assert calls.keys() == computed
    assert ("transferring/churn" in ran.series) is ("self" in weights)


@pytest.mark.parametrize(
    ("method", "computed"),
    [
        ("shot", {"L_IM", "L_self", "classifier"}),
        ("socket", {"L_IM", "L_self", "L_d", "L_feat_norm", "classifier"}),
        ("socket_tgmb", {"L_rec", "L_rec_f", "L_D", "L_IM", "L_BN", "L_self", "L_d", "L_feat_norm", "T", "classifier"}),
    ],
)
def test_a_baseline_has_its_own_terms_and_no_others(adapt, calls, method, computed):
    ran = adapt(method=method)
    assert calls.keys() == computed
    assert {name for name in ran.series if name.startswith("transferring/L_")} == {
        "transferring/L_IM",
        "transferring/L_self",
        *({"transferring/L_BN", "transferring/L_feat"} if method != "shot" else set()),
    }


def test_the_paper_preset_is_the_papers_method_and_nothing_more(adapt, calls):
    ran = adapt(settings={"preset": "paper"})
    assert calls.keys() == {"L_rec", "L_D", "L_IM", "L_KL", "L_feat", "L_self", "classifier"}
    assert ran.model["translator"]["kind"] == "paper"


def test_shot_needs_no_pairs(adapt):
    ran = adapt(method="shot", data={"pairs": None})
    assert ran.model["translator"] is None
    assert ran.model["weights"]["changed"] is True


def test_socket_behind_a_translator_is_fed_translations_and_says_so(adapt, data):
    ran = adapt(method="socket_tgmb")
    source, published = load_file(data / "source.safetensors"), load_file(ran.out / "artifacts/model.safetensors")
    assert not all(torch.equal(source[name], published[name]) for name in source)
    assert ran.model["translator"]["needed"] is True
    assert "unchanged" not in ran.model["translator"]["note"]
    assert "translator" in ran.model["sensor"]["steps"][-2]


def test_tgkt_trains_f_t_and_leaves_h_t_and_the_source_alone(adapt, data):
    before = (data / "source.safetensors").read_bytes()
    ran = adapt()
    source, adapted = load_file(data / "source.safetensors"), load_file(ran.out / "artifacts/model.safetensors")
    assert source.keys() == adapted.keys()
    head = ran.model["head"]
    for name in source:
        same = torch.equal(source[name], adapted[name])
        of_batch_norm = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        assert same is (name.startswith(f"{head}.") or of_batch_norm), name
    assert all(value.isfinite().all() for value in adapted.values())
    assert (data / "source.safetensors").read_bytes() == before


def test_tgmb_publishes_the_source_weights_and_a_translator_and_says_so(adapt, data):
    ran = adapt(method="tgmb", settings={"bridging": {"calibration": "never"}})
    source, published = load_file(data / "source.safetensors"), load_file(ran.out / "artifacts/model.safetensors")
    assert all(torch.equal(source[name], published[name]) for name in source)
    assert ran.model["weights"]["changed"] is False
    assert ran.model["translator"]["needed"] is True
    assert "unchanged" in ran.model["translator"]["note"]
    T = build(ran.model["translator"]["kind"], ran.model["translator"]["channels"])
    T.load_state_dict(load_file(ran.out / "artifacts/translator.safetensors"))
    assert not any(name.startswith("transferring") for name in ran.series)
    assert ran.report["evaluation"]["target"]["bridged"] == ran.report["evaluation"]["target"]["adapted"]


def test_source_only_trains_nothing(adapt, data):
    ran = adapt(method="source_only")
    source, published = load_file(data / "source.safetensors"), load_file(ran.out / "artifacts/model.safetensors")
    assert all(torch.equal(source[name], published[name]) for name in source)
    assert ran.model["translator"] is None
    assert "Nothing was adapted" in " ".join(ran.result.summary["reasons"])
    labelled = ran.report["evaluation"]["labelled"]
    assert labelled["adapted"] == labelled["source_only"]
    assert {event.reference for event in ran.events if event.type == "data"} == {"target", "evaluation"}


def test_source_only_needs_no_pairs_and_no_labels(adapt):
    ran = adapt(method="source_only", data={"pairs": None, "evaluation": None})
    assert ran.report["evaluation"]["labelled"] is None
    assert ran.result.summary["accuracy"] is None


def test_bridging_brings_held_out_pairs_nearer(adapt):
    ran = adapt(method="tgmb", settings={"bridging": {"steps": 60, "lr": 3e-3}, "weights": {"d": 0, "im": 0}})
    pairs = ran.report["evaluation"]["pairs"]
    assert pairs["bridged"]["psnr"] > pairs["source_only"]["psnr"] + 2
    assert pairs["held_out"] == 5  # 15 % of 32
    assert ran.report["stages"]["bridging"]["score"] < 1


def test_the_paper_translator_trains_as_well(adapt):
    settings = {"bridging": {"translator": "paper", "steps": 60, "lr": 1e-2}, "weights": {"d": 0, "im": 0}}
    pairs = adapt(method="tgmb", settings=settings).report["evaluation"]["pairs"]
    assert pairs["bridged"]["psnr"] > pairs["source_only"]["psnr"]


def test_bridging_stops_early_and_keeps_the_best_translator(adapt):
    settings = {"bridging": {"steps": 400, "validate_every": 2, "patience": 2, "lr": 0.05}, "weights": {"im": 0}}
    ran = adapt(method="tgmb", settings=settings)
    held_out = ran.series["bridging/score"]
    lowest = min(value for _, value in held_out)
    best = [point for point in held_out if point[1] <= 1.03 * lowest][-1]
    assert ran.report["stages"]["bridging"]["best_step"] == best[0]
    assert ran.report["stages"]["bridging"]["steps"] == held_out[-1][0] < 400
    assert [value > 1.03 * lowest for _, value in held_out[-2:]] == [True, True]


def test_without_patience_bridging_never_stops_early(adapt):
    settings = {"bridging": {"steps": 30, "validate_every": 1, "patience": 0, "lr": 0.05}}
    assert adapt(method="tgmb", settings=settings).report["stages"]["bridging"]["steps"] == 30


def test_a_diverging_stage_says_which_loss_and_what_to_do(adapt, tmp_path):
    with pytest.raises(Problem) as raised:
        adapt(settings={"transfer": {"optimizer": "sgd", "lr": 10, "epochs": 4}, "weights": OFF | {"feat": 1e30}})
    assert raised.value.code == "training_diverged"
    assert raised.value.pointer == "/settings/transfer/lr"
    assert "L_" in raised.value.detail
    assert b'"training_diverged"' in (tmp_path / "out/events.jsonl").read_bytes()


def test_a_collapse_onto_one_class_is_warned_of_and_not_deployed(adapt, data):
    source = load_file(data / "source.safetensors")
    source["fc.bias"] = torch.tensor([50.0, 0.0, 0.0])
    save_file(source, data / "source.safetensors")
    ran = adapt()
    assert "collapsed" in {warning["code"] for warning in ran.report["warnings"]}
    assert ran.report["verdict"] == "do_not_deploy"
    assert any("collapsed" in reason for reason in ran.result.summary["reasons"])


def test_the_same_seed_gives_the_same_weights_and_another_does_not(adapt):
    first, second, other = (
        (adapt(name, seed=seed).out / "artifacts/model.safetensors").read_bytes() for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("size", [8, 9])
def test_sets_smaller_than_a_batch_and_remainders_of_one_are_fine(adapt, data, size):
    for path in sorted((data / "target").iterdir())[size:]:
        path.unlink()
    for side in ("rgb", "depth"):
        for path in sorted((data / "pairs" / side).iterdir())[8:]:
            path.unlink()
    ran = adapt(settings={"transfer": {"batch_size": 8}, "bridging": {"batch_size": 32}})
    assert ran.report["evaluation"]["target"]["images"] == size


def test_held_out_pairs_are_one_block_that_no_stage_trains_on(adapt, monkeypatch):
    from worker.adaptation.methods import tgmb

    seen: set[int] = set()
    real = tgmb.batch

    def watch(seed, stage, step, n, wanted):
        index = real(seed, stage, step, n, wanted)
        if stage.endswith("pairs"):
            seen.add(n)
        return index

    monkeypatch.setattr(tgmb, "batch", watch)
    splits = []
    real_split = tgmb.split
    monkeypatch.setattr(tgmb, "split", lambda job: splits.append(real_split(job)) or splits[-1])
    adapt()
    training, held = splits[0]
    assert (torch.from_numpy(held).diff() == 1).all()
    assert not set(training) & set(held)
    assert len(training) + len(held) == 32
    assert seen == {len(training)}
    assert all((a == training).all() and (b == held).all() for a, b in splits)
