"""What Prometheus itself says of metrics, alerts and the dashboard's queries: promtool, and a server that scrapes a real job."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import generate_latest
from starlette.datastructures import State

from app.observability import Metrics
from demo.processes import free_port
from tests.conftest import serving
from tests.test_docs import ROOT, blocks, text
from tests.worker.embedded import Embedded, wait_for
from worker.adaptation.events import PhaseBegan
from worker.metrics import AttemptMeter, WorkerMetrics

pytestmark = pytest.mark.prometheus
GRAFANA = json.loads(text("deploy/grafana/modalbridge.json"))
PANELS = [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in yaml.safe_load(text("deploy/alerts.yml"))["groups"] for rule in group["rules"]]
SELECTOR = re.compile(r"\b(?:modalbridge_\w+|process_\w+|up)\b(?:\{[^}]*\})?")
MAY_BE_EMPTY = {
    "Alerts that fire": 'ALERTS{alertstate="firing"}',
    "GPU utilisation": "modalbridge_worker_gpu_utilisation_ratio",
    "GPU memory": "modalbridge_worker_gpu_memory_used_bytes",
}
"""Panels that draw nothing where there is none."""


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"this test needs {name}: `make prometheus` installs it on Debian; or leave out: -m 'not prometheus'")
    return path


@dataclass
class Prometheus:
    url: str
    client: httpx.Client

    def get(self, path: str, **parameters: Any) -> Any:
        """`data` of its answer. What it refuses, a query that it cannot parse say, fails the test in its own words."""
        answer = self.client.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success" and not answer.get("warnings"), (path, parameters, answer)
        return answer["data"]

    def series(self, query: str) -> list[dict[str, str]]:
        return [one["metric"] for one in self.get("query", query=query)["result"]]

    def drawn(self, query: str, since: float) -> list[dict[str, str]]:
        """Labels of the series that a panel draws of the time since then: those with a number in them."""
        found = self.get("query_range", query=query, start=since, end=time.time(), step=0.5)["result"]
        return [one["metric"] for one in found if any(math.isfinite(float(value)) for _, value in one["values"])]


@contextmanager
def prometheus(folder: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """As docs/monitoring.md configures it, but for where the processes are and how often it looks. targets: job -> address."""
    (config,) = [
        found for block in blocks(ROOT / "docs/monitoring.md", "yaml") if "scrape_configs" in (found := yaml.safe_load(block))
    ]
    assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / "deploy/alerts.yml", folder)
    address = f"127.0.0.1:{free_port()}"
    command = [program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        running = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)

    def ready() -> bool:
        assert running.poll() is None, (folder / "prometheus.log").read_text()
        try:
            return httpx.get(f"http://{address}/-/ready").is_success
        except httpx.ConnectError:
            return False

    try:
        wait_for(ready, "Prometheus")
        with httpx.Client(timeout=30) as client:
            yield Prometheus(f"http://{address}", client)
    finally:
        running.terminate()
        running.wait(30)


def substituted(query: str, instances: list[str]) -> str:
    """As Grafana puts All of a variable into a query."""
    return query.replace("$instance", "(" + "|".join(re.escape(one).replace("\\", "\\\\") for one in instances) + ")")


def test_promtool_takes_the_alerts_their_tests_and_the_configuration():
    checks = (
        ["check", "rules", "deploy/alerts.yml"],
        ["test", "rules", "deploy/alerts.test.yml"],
        ["check", "config", "--syntax-only", "deploy/prometheus.yml"],
    )
    for arguments in checks:
        done = subprocess.run([program("promtool"), *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_the_metrics():
    worker, front_end = WorkerMetrics(), Metrics(State())
    for phase in ("preparing", "bridging"):
        AttemptMeter(worker).hear(PhaseBegan(phase=phase))
    front_end.requests.labels("/jobs", "GET", "2xx").inc()
    front_end.seconds.labels("/jobs", "GET").observe(0.1)
    for registry in (worker.registry, front_end.registry):
        done = subprocess.run([program("promtool"), "check", "metrics"], input=generate_latest(registry), capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.acceptance
def test_after_one_job_all_that_the_dashboard_and_the_alerts_ask_has_its_answer(embedded: Embedded, tmp_path: Path):
    port, folder, began = free_port(), tmp_path / "prometheus", time.time()
    folder.mkdir()
    limited = embedded.settings.model_copy(update={"storage_bytes": 2**30})
    with serving(limited) as front_end, embedded.worker(metrics_port=port):
        targets = {"frontend": front_end.url.removeprefix("http://"), "worker": f"127.0.0.1:{port}"}
        with prometheus(folder, targets) as asked:
            wait_for(lambda: asked.series("modalbridge_worker_housekeeping_passes_total > 0"), "the worker's first pass")
            job_id = embedded.submit(
                settings={
                    "precision": "fp32",
                    "bridging": {"steps": 4, "batch_size": 8, "calibration": "never"},
                    "transfer": {"epochs": 1},
                }
            )

            def over() -> bool:
                time.sleep(0.2)
                return front_end.client.get(f"/jobs/{job_id}").json()["status"] == "succeeded"

            wait_for(over, "the job", 120, lambda: embedded.story(job_id))
            wait_for(lambda: asked.series('modalbridge_worker_attempts_total{outcome="succeeded"} == 1'), "a scrape after it")
            every_panel_has_data(asked, began)
            every_alert_is_evaluated_and_rests(asked)
            every_selector_matches(asked)


def every_panel_has_data(asked: Prometheus, began: float) -> None:
    (variable,) = [one for one in GRAFANA["templating"]["list"] if one["type"] == "query"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
    instances = asked.get(f"label/{label}/values", **{"match[]": metric})
    assert len(instances) == 1
    for panel in PANELS:
        for target in panel["targets"]:
            # A panel of `> 0` shows what has gone wrong, and nothing did.
            query = substituted(target["expr"], instances).removesuffix(" > 0")
            drawn = asked.drawn(query, began)
            there = panel["title"] not in MAY_BE_EMPTY or asked.series(MAY_BE_EMPTY[panel["title"]])
            assert bool(drawn) is bool(there), f"{panel['title']}: {query}"
            for name in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
                assert all(name in labels for labels in drawn), f"{panel['title']}: no label {name}"


def every_alert_is_evaluated_and_rests(asked: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in asked.get("rules")["groups"] for rule in group["rules"]]

    assert {rule["name"] for rule in rules()} == {rule["alert"] for rule in ALERTS}
    assert [(rule["name"], rule["health"], rule.get("lastError")) for rule in rules() if rule["health"] != "ok"] == []
    # A scrape that a busy machine held up makes one pending until the next.
    wait_for(lambda: all(rule["state"] == "inactive" for rule in rules()), "the alerts to rest", 30, lambda: str(rules()))


def every_selector_matches(asked: Prometheus) -> None:
    """Each name with its labels, by itself: an alert that rests because nothing matches would rest for ever."""
    queries = [rule["expr"] for rule in ALERTS] + [target["expr"] for panel in PANELS for target in panel["targets"]]
    selectors = {one for query in queries for one in SELECTOR.findall(query.replace('instance=~"$instance"', ""))}
    assert len(selectors) > 30
    assert [one for one in sorted(selectors) if not asked.series(one) and "_gpu_" not in one] == []
