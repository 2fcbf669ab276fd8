from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.artifacts.table import Artifact
from app.blobs import LocalBlobs
from app.dashboard import pictures as dashboard_pictures
from app.dashboard import report as dashboard_report
from app.dashboard import results
from worker.adaptation import readme, report, verdict

from .conftest import HOSTILE


def found(**changes: Any) -> dict[str, Any]:
    """What a good adaptation is found to be, with changes of single numbers by path."""
    one = {"mean_entropy": 0.4, "entropy_share": 0.3, "effective_classes": 3.6, "largest_class_share": 0.4}
    document: dict[str, Any] = {
        "target": {
            "source_only": one | {"entropy_share": 0.7},
            "adapted": dict(one),
            "teacher_student_agreement": 0.9,
            "changed": 0.5,
        },
        "pairs": {"adapted": {"feature_distance_ratio": 0.4}},
        "labelled": {
            "source_only": {"accuracy": 0.4, "balanced_accuracy": 0.35},
            "bridged": {"accuracy": 0.82, "balanced_accuracy": 0.79},
            "adapted": {"accuracy": 0.8, "balanced_accuracy": 0.75},
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = document
        for parent in parents:
            place = place[parent]
        place[last] = value
    return document


def judged(churn: float = 0.0, method: str = "tgmb_tgkt", relevance: float | None = 0.8, **changes: Any):
    return verdict.judge(found(**changes), [[1, 0.5], [2, churn]], method, 4, relevance)


def test_a_good_adaptation_is_deployed():
    assert judged() == ("deploy", [])
    assert judged(labelled=None)[0] == "deploy"
    assert judged(relevance=None)[0] == "deploy"


def test_pairs_of_another_domain_tell_nothing_for_or_against_it():
    for ratio in (0.4, 1.9):
        found, reasons = judged(relevance=0.1, pairs__adapted__feature_distance_ratio=ratio)
        assert found == "look_closer"
        assert [reason["what"].partition(":")[0] for reason in reasons] == [
            "The pairs are too far from the task to tell whether the features fit"
        ]


@pytest.mark.parametrize(
    ("changes", "expected", "word"),
    [
        ({"target__adapted__effective_classes": 1.2}, "do_not_deploy", "collapsed"),
        ({"target__adapted__largest_class_share": 0.97}, "do_not_deploy", "collapsed"),
        ({"target__adapted__entropy_share": 0.85}, "look_closer", "entropy"),
        ({"target__adapted__entropy_share": 0.97}, "do_not_deploy", "entropy"),
        ({"target__teacher_student_agreement": 0.5}, "look_closer", "agree"),
        ({"target__teacher_student_agreement": 0.2}, "do_not_deploy", "agree"),
        ({"pairs__adapted__feature_distance_ratio": 1.0}, "look_closer", "pairs"),
        ({"pairs__adapted__feature_distance_ratio": 2.0}, "do_not_deploy", "pairs"),
        ({"churn": 0.3}, "look_closer", "Pseudo-labels"),
        ({"labelled__adapted__accuracy": 0.39}, "do_not_deploy", "Accuracy"),
        (
            {"labelled__adapted__balanced_accuracy": 0.3, "labelled__bridged__balanced_accuracy": 0.3},
            "do_not_deploy",
            "Balanced accuracy",
        ),
        (
            {
                "labelled__source_only": {"accuracy": 0.15, "balanced_accuracy": 0.15},
                "labelled__adapted__balanced_accuracy": 0.2500001,
                "labelled__bridged__balanced_accuracy": 0.25,
            },
            "do_not_deploy",
            "guessing",
        ),
        ({"labelled__bridged__balanced_accuracy": 0.81}, "look_closer", "teacher"),
        ({"target__changed": 0.005}, "look_closer", "almost every image"),
        ({"method": "source_only", "target__changed": 0.0}, "look_closer", "Nothing was adapted"),
    ],
)
def test_each_sign_of_failure_has_its_verdict_and_its_reason(changes, expected, word):
    said, reasons = judged(**changes)
    assert said == expected
    assert [word in reason["what"] for reason in reasons] == [True]


def test_the_worst_reason_decides_and_comes_first():
    said, reasons = judged(churn=0.3, labelled__adapted__accuracy=0.1)
    assert said == "do_not_deploy"
    assert [reason["verdict"] for reason in reasons] == ["do_not_deploy", "look_closer"]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_the_figures_and_asks_for_nothing_from_elsewhere(ran):
    html = (ran.out / "artifacts/report.html").read_text()
    page = Page(html)
    assert "<script" not in html
    assert page.text.count(HOSTILE) == 3, "the job's name in title and heading, and a file's"
    assert not re.search(r"https?://|url\(|@import", html)
    addresses = [address for _, given in page.tags for key in ("src", "href") if (address := given.get(key))]
    assert addresses and all(address.startswith("data:image/webp;base64,") for address in addresses)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    accuracy = ran.report["summary"]["accuracy"]["adapted"]["accuracy"]
    assert f"{100 * accuracy:.1f} %" in page.text
    assert report.VERDICTS[ran.report["verdict"]] in page.text
    assert all(reason["what"] in page.text for reason in ran.report["reasons"])
    curves = [given for tag, given in page.tags if tag == "polyline"]
    assert len(curves) == sum(not name.startswith("evaluation") and len(points) > 1 for name, points in ran.series.items())


def test_the_card_says_which_labelled_images_were_adapted_to(ran):
    card, prepared = (json.loads((ran.out / "artifacts" / name).read_text()) for name in ("model.json", "preprocessing.json"))
    assert "which it was not trained on" in readme.write(card, prepared, ran.report | {"warnings": []})
    warning = {"code": "evaluation_adapted_to", "message": "", "data": {"images": 5}}
    text = readme.write(card, prepared, ran.report | {"warnings": [warning]})
    assert "of which 5 were adapted to without their labels" in text and "not trained on" not in text


def test_the_strips_images_are_the_sprites_tiles_and_each_says_what_it_shows(ran):
    shown = [given for tag, given in Page((ran.out / "artifacts/report.html").read_text()).tags if tag == "img"]
    with Image.open(ran.out / "artifacts/pictures.webp") as image:
        sprite = np.asarray(image)
    strip = ran.report["pictures"]
    side, spots = strip["tile"], [spot for row in strip["rows"] for spot in row["tiles"].values()]
    assert len(shown) == len(spots) and {(given["width"], given["height"]) for given in shown} == {("96", "96")}
    for given, (left, top) in zip(shown, spots, strict=True):
        tile = np.asarray(Image.open(io.BytesIO(base64.b64decode(given["src"].partition(",")[2]))))
        assert (tile == sprite[top : top + side, left : left + side]).all()
    names = [row["name"] for row in strip["rows"] for _ in row["tiles"]]
    assert all(given["alt"].startswith(name) for given, name in zip(shown, names, strict=True))
    assert len({given["alt"] for given in shown}) == len(shown)


def test_the_report_says_what_was_done_with_what(ran):
    assert {read["reference"]: read["images"] for read in ran.report["data"]} == {
        "target": 60,
        "pairs/source": 32,
        "pairs/target": 32,
        "evaluation": 36,
    }
    assert "millimetres" in ran.report["data"][0]["scaling"]
    assert ran.result.summary == ran.report["summary"]
    assert ran.result.summary["verdict"] in verdict.WORSE
    assert json.loads((ran.out / "artifacts/metrics.json").read_text())["evaluation"] == ran.report["evaluation"]


def test_the_dashboard_reads_every_measure_class_and_picture(ran, tmp_path):
    blobs = LocalBlobs(tmp_path)
    blobs.prepare()
    size, _ = blobs.put(ran.out / "artifacts/report.json", "jobs/report.json")
    told = dashboard_report.by_class(blobs, [Artifact(name="report.json", size=size, blob_key="jobs/report.json")])
    recall = ran.report["evaluation"]["labelled"]["adapted"]["per_class"]
    assert {row.name: row.adapted for row in told.rows} == pytest.approx(recall)
    assert sum(row.images for row in told.rows) == 36
    assert [row.measure for row in results.rows(ran.report["summary"])] == list(results.MEASURES)
    size, _ = blobs.put(ran.out / "artifacts/pictures.json", "jobs/pictures.json")
    described = Artifact(name="pictures.json", size=size, blob_key="jobs/pictures.json")
    strip = dashboard_pictures.of_job(blobs, [described, Artifact(name="pictures.webp")], 6)
    assert isinstance(strip, dashboard_pictures.Strip)
    assert [(group.kind, len(group.rows), group.columns) for group in strip.groups] == [
        ("target", 6, ["sensor", "translation"]),
        ("evaluation", 3, ["sensor", "translation"]),
        ("pair", 3, ["sensor", "translation", "rgb"]),
    ]


PEAK = "from worker.adaptation.report import peak_bytes; x = bytearray({held} * 2**20); print(peak_bytes() // 2**20)"


def test_peak_memory_is_this_processs_own_and_not_that_of_the_one_that_started_it():
    def peak(held: int) -> int:
        ran = subprocess.run([sys.executable, "-c", PEAK.format(held=held)], check=True, capture_output=True, text=True)
        return int(ran.stdout)

    ballast = bytearray(b"x") * (1200 * 2**20)
    small, large = peak(1), peak(300)
    assert 280 < large - small < 400
    assert small < len(ballast) // 2**20


def test_a_chart_puts_its_points_between_its_axes():
    drawn = report.chart("x", [[0, 4.0], [5, 1.0], [10, 2.5]])
    points = [tuple(map(float, pair.split(","))) for pair in drawn["line"].split()]
    assert points[0][0] == report.MARGIN
    assert points[0][1] == 20
    assert points[1][1] == report.HEIGHT - 20
    assert points[0][0] < points[1][0] < points[2][0] <= report.WIDTH
    assert (drawn["low"], drawn["high"], drawn["end"]) == (1.0, 4.0, 2.5)
    report.chart("constant", [[0, 1.0], [0, 1.0]])
