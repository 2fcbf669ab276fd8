"""References to archives on https hosts, against a real server: which are asked, at which addresses, and what they may answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore
import pytest
from pydantic import ValidationError

from app import remote
from app.addresses import CheckedBackend, ForbiddenAddressError, is_public
from app.downloads import Downloads
from app.errors import Problem
from app.jobs.table import Job
from app.settings import Settings
from demo.processes import free_port
from tests.app.conftest import make_data, safetensors, submit
from tests.archives import made
from tests.conftest import serving
from tests.https import File, Https, server

ARCHIVE = made("zip", {"a.png": b"x" * 1000})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Https]:
    with server(tmp_path_factory.mktemp("https"), "files.test", "mirror.test") as https:
        yield https


@pytest.fixture
def https(running: Https) -> Https:
    running.files.clear()
    running.seen.clear()
    running.files["/hall.zip"] = File(ARCHIVE)
    return running


def given(
    https: Https, *private: str, hosts: tuple[str, ...] = ("localhost", "files.test", "mirror.test"), **more: Any
) -> Settings:
    """Open hosts, of which some may have private addresses."""
    named = tuple(f"{host}:{https.port}" for host in hosts)
    return Settings(
        data_hosts=named,
        data_private_hosts=tuple(f"{host}:{https.port}" for host in private),
        data_ca_file=str(https.ca_file),
        **more,
    )


def look(settings: Settings, url: str, backend: httpcore.NetworkBackend | None = None) -> remote.Pin:
    return Downloads(settings, backend).look(remote.parse(url, "/x"), "/x")


def refusal(settings: Settings, url: str, backend: httpcore.NetworkBackend | None = None) -> str:
    with pytest.raises(Problem) as caught:
        look(settings, url, backend)
    assert caught.value.pointer == "/x"
    return caught.value.code


def test_an_archive_is_looked_at_and_not_downloaded(https: Https):
    pin = look(given(https, "localhost"), https.url("/hall.zip"))
    assert (pin.uri, pin.version, pin.size) == (https.url("/hall.zip"), f"etag:{https.files['/hall.zip'].tag}", len(ARCHIVE))
    assert https.seen == [(f"localhost:{https.port}", "/hall.zip", "bytes=0-0")]


def test_a_host_that_cannot_give_a_part_is_asked_no_more_than_its_headers(https: Https):
    https.files["/hall.zip"] = File(ARCHIVE, ranges=False, etag="", modified="Thu, 26 Nov 2026 05:00:00 GMT")
    pin = look(given(https, "localhost"), https.url("/hall.zip"))
    assert (pin.version, pin.size) == ("modified:Thu, 26 Nov 2026 05:00:00 GMT", len(ARCHIVE))
    https.files["/hall.zip"] = File(ARCHIVE, ranges=False, etag='W/"weak"', length=False)
    assert look(given(https, "localhost"), https.url("/hall.zip")) == remote.Pin(
        uri=https.url("/hall.zip"), version="", size=None
    )


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.10", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "198.51.100.7",
        "203.0.113.9", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1", "fec0::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::808:808",
        "2002:7f00:1::", "2002:a9fe:a9fe::", "2001:0:a9fe:a9fe::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_of_the_open_internet_is_refused(https: Https, address: str):
    assert not is_public(address)
    backend = CheckedBackend(resolve=lambda _host, _port: ["1.1.1.1", address], dial=Undialled())
    assert refusal(given(https), https.url("/hall.zip", "files.test"), backend) == "reference_forbidden"


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_an_address_of_the_open_internet_is_taken(address: str):
    assert is_public(address)


class Undialled(httpcore.NetworkBackend):
    def connect_tcp(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        raise AssertionError("it is connected to")


class Dialled(httpcore.NetworkBackend):
    """Notes where it is to go, and goes to this machine."""

    def __init__(self) -> None:
        self.to: list[str] = []

    def connect_tcp(self, host: str, port: int, *rest: Any, **named: Any) -> httpcore.NetworkStream:
        self.to.append(host)
        return httpcore.SyncBackend().connect_tcp("127.0.0.1", port, *rest, **named)


class Silent(Dialled):
    """Whose first addresses never answer."""

    def __init__(self, silent: int) -> None:
        super().__init__()
        self.silent = silent

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *rest: Any, **named: Any) -> httpcore.NetworkStream:
        if len(self.to) < self.silent:
            self.to.append(host)
            assert timeout is not None
            time.sleep(timeout)
            raise httpcore.ConnectTimeout("timed out")
        return super().connect_tcp(host, port, timeout, *rest, **named)


ADDRESSES = [f"93.184.216.{last}" for last in range(8)]


def test_however_many_addresses_a_host_has_it_gains_no_time_by_them():
    silent = Silent(len(ADDRESSES))
    backend = CheckedBackend(resolve=lambda _host, _port: ADDRESSES, dial=silent)
    began = time.monotonic()
    with pytest.raises(httpcore.ConnectTimeout):
        backend.connect_tcp("files.test", 443, timeout=0.8)
    assert time.monotonic() - began < 1.2
    assert silent.to == ADDRESSES, "and each has its turn"


def test_a_host_whose_first_address_is_silent_is_reached_at_the_next(https: Https):
    """As a network without IPv6 knows it of hosts that have both."""
    silent = Silent(1)
    backend = CheckedBackend(resolve=lambda _host, _port: ADDRESSES[:2], dial=silent)
    with backend.connect_tcp("files.test", https.port, timeout=1.0).get_extra_info("socket"):
        assert silent.to == ADDRESSES[:2]


def test_a_real_name_of_this_machine_is_refused_unless_the_settings_name_it(https: Https):
    assert refusal(given(https), https.url("/hall.zip")) == "reference_forbidden"
    assert refusal(given(https, "files.test"), https.url("/hall.zip")) == "reference_forbidden"
    assert https.seen == []
    assert refusal(given(https, hosts=("127.0.0.1",)), https.url("/hall.zip", "127.0.0.1")) == "reference_forbidden"


def test_what_was_looked_at_is_connected_to_whatever_the_name_leads_to_by_then(https: Https):
    """DNS that answers with a public address first and with a private one to each later question."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"], ["127.0.0.1"]])
    asked: list[str] = []

    def rebinding(host: str, _port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    dialled = Dialled()
    backend = CheckedBackend(resolve=rebinding, dial=dialled)
    assert look(given(https), https.url("/hall.zip", "files.test"), backend).size == len(ARCHIVE)
    assert (asked, dialled.to) == (["files.test"], ["93.184.216.34"]), "asked once, and no name but that address was dialled"
    assert https.seen[0][0] == f"files.test:{https.port}", "by its name, in Host, and in the certificate that was checked"
    assert refusal(given(https), https.url("/hall.zip", "files.test"), backend) == "reference_forbidden"
    assert dialled.to == ["93.184.216.34"] and len(https.seen) == 1


def test_the_certificate_must_be_the_hosts(https: Https):
    backend = CheckedBackend(resolve=lambda _host, _port: ["1.1.1.1"], dial=Dialled())
    settings = given(https, hosts=("stranger.test",))
    assert refusal(settings, https.url("/hall.zip", "stranger.test"), backend) == "reference_unreadable"
    distrusting = given(https, "localhost").model_copy(update={"data_ca_file": ""})
    assert refusal(distrusting, https.url("/hall.zip")) == "reference_unreadable"
    assert https.seen == []


def test_redirects_are_followed_where_each_hop_might_be_named(https: Https):
    settings = given(https, "localhost")
    https.files["/old.zip"] = File(b"", status=301, location="/older?token=1")
    https.files["/older?token=1"] = File(b"", status=302, location=https.url("/hall.zip"))
    pin = look(settings, https.url("/old.zip"))
    assert (pin.uri, pin.size) == (https.url("/old.zip"), len(ARCHIVE))
    https.files["/loop.zip"] = File(b"", status=307, location="/loop.zip")
    https.seen.clear()
    assert refusal(settings, https.url("/loop.zip")) == "reference_unreadable" and len(https.seen) == 6


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://localhost/hall.zip", "reference_forbidden"),
        ("file:///etc/passwd", "reference_forbidden"),
        ("https://169.254.169.254/latest/meta-data", "reference_forbidden"),
        ("https://elsewhere.test/hall.zip", "reference_forbidden"),
        ("https://localhost/hall.zip", "reference_forbidden"),
        ("https://user:pass@localhost/hall.zip", "reference_scheme"),
        ("", "reference_unreadable"),
        ("https://[", "reference_unreadable"),
        ("//a]b/", "reference_unreadable"),
    ],
)
def test_a_redirect_to_where_no_reference_may_lead_is_refused(https: Https, location: str, code: str):
    https.files["/old.zip"] = File(b"", status=302, location=location)
    assert refusal(given(https, "localhost"), https.url("/old.zip")) == code


def test_a_redirect_to_a_host_that_is_open_but_leads_inside_is_refused(https: Https):
    https.files["/old.zip"] = File(b"", status=302, location=https.url("/hall.zip", "mirror.test"))
    backend = CheckedBackend(["localhost"], resolve=lambda _host, _port: ["127.0.0.1"])
    assert refusal(given(https), https.url("/old.zip"), backend) == "reference_forbidden"
    assert [path for _, path, _ in https.seen] == ["/old.zip"]


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "reference_missing"), (410, "reference_missing"), (401, "reference_unreadable"), (403, "reference_unreadable"),
     (416, "empty_file"), (429, "reference_away"), (500, "reference_away"), (503, "reference_away"), (204, "reference_unreadable")],
)  # fmt: skip
def test_what_a_host_answers_is_told_apart(https: Https, status: int, code: str):
    https.files["/hall.zip"] = File(b"", status=status)
    assert refusal(given(https, "localhost"), https.url("/hall.zip")) == code


@pytest.mark.parametrize(
    "answer",
    [File(b"", status=403), File(b"", status=404), File(b"", status=503), File(b"", status=302, location="/hall.zip?sig=SECRET"),
     File(b"", status=302, location="http://localhost/x?sig=SECRET"), File(b"", status=302, location="//a]b/?sig=SECRET"),
     File(b"", status=302, location="https://user@localhost/?sig=SECRET")],
)  # fmt: skip
def test_what_is_said_of_a_signed_reference_holds_no_signature(https: Https, answer: File):
    """A job's error goes to its webhooks, to MLflow and into the worker's log."""
    https.files["/hall.zip?sig=SECRET"] = answer
    with pytest.raises(Problem) as caught:
        look(given(https, "localhost"), https.url("/hall.zip?sig=SECRET"))
    assert "SECRET" not in str(caught.value.document())
    assert "hall.zip?..." in caught.value.detail or "user@localhost" in caught.value.detail


def test_one_that_is_too_large_or_not_there_is_refused(https: Https):
    assert refusal(given(https, "localhost", max_dataset_bytes=100), https.url("/hall.zip")) == "reference_too_large"
    port = free_port()
    settings = Settings(data_hosts=(f"localhost:{port}",), data_private_hosts=(f"localhost:{port}",))
    assert refusal(settings, f"https://localhost:{port}/hall.zip") == "reference_away"


def test_no_socket_of_this_machine_is_opened():
    with pytest.raises(ForbiddenAddressError):
        CheckedBackend().connect_unix_socket("/run/any")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://localhost/hall.zip", "reference_forbidden"),
        ("https://elsewhere.test/hall.zip", "reference_forbidden"),
        ("https://{host}/hall", "reference_scheme"),
        ("https://{host}/hall.zip#../up", "reference_scheme"),
        ("https://user@{host}/hall.zip", "reference_scheme"),
        ("https://[::1]/hall.zip", "reference_scheme"),
        ("https://{host}:99999/hall.zip", "reference_scheme"),
        ("https://{host}/a b.zip", "reference_scheme"),
        ("http://{host}/hall.zip", "reference_scheme"),
        ("HTTP://{host}/hall.zip", "reference_scheme"),
        ("https:///hall.zip", "reference_scheme"),
    ],
)
def test_over_http_a_reference_is_refused_with_its_pointer(
    https: Https, new_database_url: Any, tmp_path: Path, data_root: Path, request_body: dict[str, Any], url: str, code: str
):
    settings = given(https, "localhost", data_dir=tmp_path, database_url=new_database_url("sqlite"), data_roots=(data_root,))
    with serving(settings) as service:
        request_body["data"]["target"] = {"uri": url.format(host=f"localhost:{https.port}")}
        problem = submit(service.client, request_body, safetensors()).json()
        assert (problem["code"], problem["pointer"]) == (code, "/data/target/uri"), problem
        assert https.seen == []


def test_over_http_a_job_is_accepted_with_a_pin(
    https: Https, new_database_url: Any, tmp_path: Path, data_root: Path, request_body: dict[str, Any]
):
    make_data(data_root)
    settings = given(https, "localhost", data_dir=tmp_path, database_url=new_database_url("sqlite"), data_roots=(data_root,))
    with serving(settings) as service:
        request_body["data"]["target"] = {"uri": https.url("/hall.zip") + "#hall/depth"}
        answer = submit(service.client, request_body, safetensors())
        assert answer.status_code == 202, answer.text
        with service.db.read() as session:
            (pin,) = session.get(Job, answer.json()["id"]).pins
    assert pin == {"uri": https.url("/hall.zip"), "version": f"etag:{https.files['/hall.zip'].tag}", "size": len(ARCHIVE)}


@pytest.mark.parametrize("value", ["https://host", "host/path", "Host", "host:443", "host:port", "user@host", "-"])
def test_settings_that_are_no_hosts_are_refused(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODALBRIDGE_DATA_HOSTS", value)
    with pytest.raises(ValidationError, match="hosts must be"):
        Settings()
    monkeypatch.setenv("MODALBRIDGE_DATA_HOSTS", "zenodo.org, files.test:8443")
    assert Settings().data_hosts == ("zenodo.org", "files.test:8443")
