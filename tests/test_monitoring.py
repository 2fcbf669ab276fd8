"""Metrics, alerts, dashboard and the page that explains them are of one mind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from starlette.datastructures import State
from starlette.testclient import TestClient

from app.main import create_app
from app.observability import Metrics
from app.settings import Settings
from tests.test_docs import ROOT, blocks, table, text
from worker.gpus import Gpus
from worker.invariants import INVARIANTS
from worker.metrics import LOST, WorkerMetrics

SAMPLES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
WORDS = {"and", "or", "unless", "bool", "offset", "Inf"}
BY_PROMETHEUS = {"up": frozenset({"job", "instance"}), "ALERTS": frozenset({"alertname", "alertstate", "severity"})}


def collected(registry: CollectorRegistry) -> dict[str, tuple[str, frozenset[str]]]:
    """name as Prometheus has it, without a histogram's suffixes -> type, labels."""
    found = {}
    for collector in list(registry._collector_to_names):
        for family in collector.describe() if hasattr(collector, "describe") else collector.collect():
            labels = getattr(collector, "_labelnames", getattr(family, "_labelnames", ()))
            found[family.name + ("_total" if family.type == "counter" else "")] = family.type, frozenset(labels)
    return found


@pytest.fixture(scope="module")
def exported() -> dict[str, tuple[str, frozenset[str]]]:
    worker = WorkerMetrics().registry
    worker.register(Gpus(None))
    return collected(Metrics(State()).registry) | collected(worker)


@pytest.fixture(scope="module")
def series(exported: dict[str, tuple[str, frozenset[str]]]) -> dict[str, frozenset[str]]:
    """Every name that an expression may use -> its labels, with those that Prometheus adds."""
    found = dict(BY_PROMETHEUS)
    for name, (kind, labels) in exported.items():
        for suffix in SAMPLES[kind] if kind == "histogram" else ("",):
            found[name + suffix] = labels | {"job", "instance"} | ({"le"} if suffix == "_bucket" else frozenset())
    return found


def unknown(expression: str, series: dict[str, frozenset[str]]) -> list[str]:
    """Names in an expression that nobody exports, and labels that its metrics lack."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    wrong = []
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", bare):
        labels = re.findall(r"(\w+)\s*[=!]", matchers)
        wrong += [f"{name}{{{label}}}" for label in labels if label not in series.get(name, ())]
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    grouped = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    names = set(re.findall(r"(?<![\w.])[a-zA-Z_]\w*\b(?!\s*\()", bare)) - WORDS
    wrong += sorted(names - series.keys())
    known = frozenset().union(*(series.get(name, frozenset()) for name in names))
    return wrong + [label for group in grouped for label in re.findall(r"\w+", group) if label not in known]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(text("deploy/alerts.yml"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(text("deploy/grafana/modalbridge.json"))["panels"] if panel["type"] != "row"]


def test_an_expression_that_names_what_is_not_there_is_found(series: dict[str, frozenset[str]]):
    assert unknown('sum by (le) (rate(modalbridge_http_request_duration_seconds_bucket{route="/x"}[5m]))', series) == []
    assert unknown("modalbridge_made_up > 0 and up", series) == ["modalbridge_made_up"]
    assert unknown('max by (colour) (modalbridge_jobs{tenant="a", status!~"b"})', series) == [
        "modalbridge_jobs{tenant}",
        "colour",
    ]


def test_the_page_tells_of_every_metric_its_type_and_its_labels(exported: dict[str, tuple[str, frozenset[str]]]):
    told = {
        name: (cells[0], frozenset(re.findall(r"\w+", cells[1])))
        for name, cells in table("docs/monitoring.md", "`modalbridge_").items()
    }
    ours = {name: value for name, value in exported.items() if not name.startswith("process_")}
    assert told == ours, "a table of docs/monitoring.md has a row for each metric, with its type and its labels"


def test_the_page_tells_of_every_invariant_that_a_query_watches():
    page = text("docs/monitoring.md").partition("## Invariants")[2].partition("What no query watches")[0]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(INVARIANTS), "those of worker/invariants.py, in its order"


def test_the_page_tells_of_every_cause_of_a_loss():
    page = text("docs/monitoring.md").partition("Why an attempt was lost")[2].partition("## ")[0]
    assert {cause for cause in LOST if not cause.startswith("SIG")} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_the_targets_on_the_page_are_names_that_the_front_ends_answer_by(tmp_path: Path):
    jobs = [yaml.safe_load(block) for block in blocks(ROOT / "docs/monitoring.md", "yaml")]
    by_name, by_address = [
        [target for group in job[0]["static_configs"] for target in group["targets"]] for job in jobs if isinstance(job, list)
    ]
    (line,) = re.findall(r"^    MODALBRIDGE_HOSTS=(.*)$", text("docs/monitoring.md"), re.MULTILINE)

    def codes(targets: list[str], hosts: str) -> set[int]:
        client = TestClient(create_app(Settings(data_dir=tmp_path, hosts=hosts)))
        return {client.get("/metrics", headers={"Host": target}).status_code for target in targets}

    assert len(by_name) == len(by_address) == 2
    assert (codes(by_name, ""), codes(by_name, line), codes(by_address, "")) == ({403}, {200}, {200})


def test_the_page_tells_of_every_alert():
    assert list(table("docs/monitoring.md", "`ModalBridge")) == [rule["alert"] for rule in alerts()]


def test_every_alert_uses_what_is_exported_and_says_what_to_do(series: dict[str, frozenset[str]]):
    for rule in alerts():
        assert unknown(rule["expr"], series) == [], rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert all(rule["annotations"][part] for part in ("summary", "description", "action", "runbook")), rule["alert"]
        page, _, heading = rule["annotations"]["runbook"].partition("#")
        headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
        slugs = [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings]
        assert heading in slugs, rule["annotations"]["runbook"]


def test_every_alert_is_tried():
    tries = [one for test in yaml.safe_load(text("deploy/alerts.test.yml"))["tests"] for one in test["alert_rule_test"]]
    fires = {one["alertname"] for one in tries if one["exp_alerts"]}
    rests = {one["alertname"] for one in tries if not one["exp_alerts"]}
    assert fires == rests == {rule["alert"] for rule in alerts()}


def test_every_panel_uses_what_is_exported_and_has_a_title_of_its_own(series: dict[str, frozenset[str]]):
    for panel in panels():
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert unknown(target["expr"], series) == [], panel["title"]
            assert panel["datasource"] == target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)


def test_the_dashboard_shows_every_metric(exported: dict[str, tuple[str, frozenset[str]]]):
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    assert [name for name in exported if name.startswith("modalbridge_") and name not in shown] == [], (
        "deploy/grafana/modalbridge.json has a panel of each metric: copy one of its row, and give it an id, title and place"
    )


def test_the_dashboard_can_be_loaded():
    dashboard = json.loads(text("deploy/grafana/modalbridge.json"))
    assert dashboard["schemaVersion"] >= 39 and dashboard["uid"] == "modalbridge"
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
