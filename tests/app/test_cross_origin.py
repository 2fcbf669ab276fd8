"""What a page of another site can have a visitor's browser do here: nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from tests.app.conftest import safetensors, submit
from tests.conftest import Service, on_sqlite, serving


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_another_sites_page_changes_nothing(service: Service, request_body: dict[str, Any], headers: dict[str, str]) -> None:
    job = submit(service.client, request_body, safetensors()).json()["id"]
    for method, path in (("POST", f"/jobs/{job}/cancel"), ("POST", "/jobs"), ("POST", "/webhooks"), ("DELETE", f"/jobs/{job}")):
        answer = service.client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin"), (method, path)
    assert service.client.get(f"/jobs/{job}", headers=headers).json()["status"] == "queued"


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "same-origin", "Origin": "https://behind-a-proxy.example"}])
def test_programs_and_own_pages_may(service: Service, request_body: dict[str, Any], headers: dict[str, str]) -> None:
    job = submit(service.client, request_body, safetensors()).json()["id"]
    assert service.client.post(f"/jobs/{job}/cancel", headers=headers).status_code == 202


PATHS = ("/jobs", "/source-models", "/metrics", "/healthz", "/", "/dashboard/jobs")
OTHERS = (
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "1.evil",
    "[::1].evil",
    "a:b:c",
    "[",
)


@on_sqlite
@pytest.mark.parametrize("host", OTHERS)
def test_a_name_that_is_made_to_lead_here_reads_and_changes_nothing(
    service: Service, request_body: dict[str, Any], host: str
) -> None:
    """DNS rebinding: to the browser, a page of that name and this service are one site then."""
    job = submit(service.client, request_body, safetensors()).json()["id"]
    headers = {"Host": host, "Sec-Fetch-Site": "same-origin", "Origin": f"http://{host}"}
    for method, path in [("GET", path) for path in (*PATHS, f"/jobs/{job}")] + [
        ("POST", f"/jobs/{job}/cancel"),
        ("DELETE", f"/jobs/{job}"),
    ]:
        answer = service.client.request(method, path, headers=headers)
        assert answer.status_code == 403 and "unknown_host" in answer.text and "MODALBRIDGE_HOSTS" in answer.text, (method, path)
        assert job not in answer.text.replace(answer.request.url.path, "")
    assert service.client.head(f"/jobs/{job}/artifacts/report.html", headers=headers).status_code == 403
    assert service.client.get(f"/jobs/{job}").json()["status"] == "queued"


@on_sqlite
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3:8000", "[::1]:8000", "[fe80::1]", "localhost", "LocalHost:8000", "a.b.localhost", "localhost.", "frontend:8000"]
)  # fmt: skip
def test_addresses_and_names_that_no_one_else_can_have_lead_here(service: Service, host: str) -> None:
    for path in PATHS:
        assert service.client.get(path, headers={"Host": host}, follow_redirects=True).status_code == 200, path


def test_names_of_a_setting_lead_here_and_a_star_is_any(
    new_database_url: Callable[[str], str], tmp_path: Path, request_body: dict[str, Any]
) -> None:
    def codes(hosts: str) -> list[int]:
        settings = Settings(data_dir=tmp_path / "var", database_url=new_database_url("sqlite"), hosts=hosts)
        with serving(settings) as service:
            return [service.client.get("/jobs", headers={"Host": host}).status_code for host in asked]

    asked = ("bridge.example.org", "Bridge.Example.Org:8443", "b.test", "x.bridge.example.org", "example.org")
    assert codes("bridge.example.org, B.test") == [200, 200, 200, 403, 403]
    assert codes("*") == [200] * 5
    assert codes("") == [403] * 5


@pytest.mark.parametrize("value", ["https://host.example", "host.example/path", "host.example:443", "*.example", "-", "a b"])
def test_what_is_no_name_of_a_host_is_refused_at_the_start(value: str) -> None:
    with pytest.raises(ValueError, match="hosts must be names"):
        Settings(hosts=value)
