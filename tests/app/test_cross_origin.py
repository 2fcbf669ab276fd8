"""What a page of another site can have a visitor's browser do here: nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.app.conftest import safetensors, submit
from tests.conftest import Service


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
