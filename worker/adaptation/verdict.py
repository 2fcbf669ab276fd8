"""Should the adapted model be deployed? A plain answer with its reasons, from evidence that needs no labels; labels, where
there are some, overrule it for the worse. The thresholds are ours: coarse, meant to catch failures, not to rank successes."""

from __future__ import annotations

from typing import Any, Literal

from worker.adaptation.methods.relevance import LEAST_RELEVANCE
from worker.adaptation.methods.tgmb import collapsed

Verdict = Literal["deploy", "look_closer", "do_not_deploy"]
WORSE: list[Verdict] = ["deploy", "look_closer", "do_not_deploy"]
ENTROPY_SHARE = (0.8, 0.95)
"""Mean entropy over ln K: look closer above the first, do not deploy above the second."""
AGREEMENT = (0.6, 0.3)
"""Teacher and student name the same class: look closer below the first, do not deploy below the second."""
FEATURE_DISTANCE_RATIO = (0.95, 1.5)
"""Distance of a held-out pair's features after over before: look closer above the first, do not deploy above the second."""
TEACHER_AHEAD = 0.05
"""Of the adapted model on labelled images: a few hundred of them tell no less."""
CHANGED = 0.01
"""Share of the images that the adapted model names another class of: below it, nothing is gained by deploying it."""
CHURN = 0.15
"""Pseudo-labels that still changed at the start of the last epoch."""


def judge(
    found: dict[str, Any], churn: list[list[float]], method: str, classes: int, relevance: float | None = None
) -> tuple[Verdict, list[dict[str, Any]]]:
    """The verdict and its reasons, each {verdict, what, value, threshold}. found: of `assessment.assess`; churn: the
    series of the pseudo-labels; relevance: of the pairs, where stage 1 found it."""
    reasons: list[dict[str, Any]] = []

    def say(verdict: Verdict, what: str, value: float | None = None, threshold: float | None = None) -> None:
        reasons.append({"verdict": verdict, "what": what, "value": value, "threshold": threshold})

    def compare(what: str, value: float, near: float, far: float) -> None:
        sign = 1 if far > near else -1
        if sign * value > sign * far:
            say("do_not_deploy", what, value, far)
        elif sign * value > sign * near:
            say("look_closer", what, value, near)

    target, pairs, labelled = found["target"], found["pairs"], found["labelled"]
    after = target["adapted"]
    if method == "source_only":
        say("look_closer", "Nothing was adapted: this is the source model on replicated images")
    elif target["changed"] < CHANGED:
        what = "The adapted model says of almost every image what the source model says as it is: was it trained for long enough?"
        say("look_closer", what, target["changed"], CHANGED)
    if message := collapsed(after, target["source_only"], classes):
        say("do_not_deploy", f"The adapted model has collapsed: {message}", after["effective_classes"])
    compare("Mean entropy of the predictions, as a share of ln K, is high", after["entropy_share"], *ENTROPY_SHARE)
    if target["teacher_student_agreement"] is not None:
        what = "The adapted model and its teacher agree on few images"
        compare(what, target["teacher_student_agreement"], *AGREEMENT)
    if relevance is not None and relevance < LEAST_RELEVANCE:
        what = "The pairs are too far from the task to tell whether the features fit: look at pictures, or label a few images"
        say("look_closer", what, relevance, LEAST_RELEVANCE)
    elif pairs is not None and method != "source_only":
        what = "Features of held-out pairs are hardly nearer to the RGB features than before (ratio after / before)"
        compare(what, pairs["adapted"]["feature_distance_ratio"], *FEATURE_DISTANCE_RATIO)
    if churn and churn[-1][1] > CHURN:
        say("look_closer", "Pseudo-labels were still changing at the start of the last epoch", churn[-1][1], CHURN)
    if labelled is not None:
        for measure in ("accuracy", "balanced_accuracy"):
            now, before = labelled["adapted"][measure], labelled["source_only"][measure]
            if now < before:
                words = measure.replace("_", " ").capitalize()
                say("do_not_deploy", f"{words} on the evaluation set is lower than the source model's as it is", now, before)
        if (now := labelled["adapted"]["balanced_accuracy"]) < 1 / classes + 1e-6:  # it is a sum of rounded shares
            say("do_not_deploy", "Balanced accuracy on the evaluation set is no better than guessing", now, 1 / classes)
        if target["teacher_student_agreement"] is not None:
            now, teacher = (labelled[model]["balanced_accuracy"] for model in ("adapted", "bridged"))
            if now < teacher - TEACHER_AHEAD:
                what = "Balanced accuracy on the evaluation set is lower than the teacher's, which the method `tgmb` publishes"
                say("look_closer", what, now, teacher - TEACHER_AHEAD)
    verdict = max((reason["verdict"] for reason in reasons), key=WORSE.index, default="deploy")
    return verdict, sorted(reasons, key=lambda reason: -WORSE.index(reason["verdict"]))
