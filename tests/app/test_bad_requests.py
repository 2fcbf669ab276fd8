"""Bad input to POST /jobs: a stable code, a pointer, a remedy, and nothing left behind."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.datasets import routes as dataset_routes
from app.datasets.schemas import DatasetDescription
from app.errors import Problem
from app.jobs import routes as job_routes
from app.problems import parse
from app.source_models import routes as source_model_routes
from app.spec import JobRequest, SourceModelDescription
from app.webhooks.schemas import WebhookRequest
from tests.app.conftest import make_images, safetensors, submit
from tests.conftest import Service, on_sqlite

Change = Callable[[dict[str, Any], Path], None]


def put(path: str, value: Any) -> Change:
    """Sets one field of the body, by JSON pointer."""

    def change(body: dict[str, Any], root: Path) -> None:
        *parents, last = path.strip("/").split("/")
        place = body
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value.replace("ROOT", str(root)) if isinstance(value, str) else value

    return change


def do(action: Callable[[Path], object]) -> Change:
    return lambda body, root: action(root) and None


def link_out(root: Path) -> None:
    (root.parent / "secret").mkdir()
    make_images(root.parent / "secret", ["a.png"])
    (root / "link").symlink_to(root.parent / "secret")


def image_link_out(root: Path) -> None:
    make_images(root.parent / "secret", ["a.png"])
    (root / "target" / "zzz.png").symlink_to(root.parent / "secret" / "a.png")


def few_images(root: Path) -> None:
    for path in sorted((root / "target").iterdir())[1:]:
        path.unlink()


def unreadable_list(root: Path) -> None:
    (root / "list.txt").write_text("target/000.png 0\n/etc/passwd.png 1\n")


CASES: list[tuple[str, Change, str, str | None]] = [
    ("unknown field", put("/metod", "tgmb"), "unknown_field", "/metod"),
    ("unknown nested field", put("/settings/weights/klm", 1), "unknown_field", "/settings/weights/klm"),
    ("unknown field of the model", put("/source_model/clases", []), "unknown_field", "/source_model/clases"),
    ("unknown method", put("/method", "magic"), "invalid_request", "/method"),
    ("negative weight", put("/settings/weights/im", -1), "invalid_request", "/settings/weights/im"),
    ("not a number", put("/settings/bridging/steps", "many"), "invalid_request", "/settings/bridging/steps"),
    ("class named twice", put("/source_model/classes", ["a", "a"]), "invalid_request", "/source_model"),
    ("one class", put("/source_model/classes", ["a"]), "invalid_request", "/source_model/classes"),
    ("hub architecture", put("/source_model/architecture", "hf-hub:x/y"), "invalid_request", "/source_model/architecture"),
    ("mean of 0 to 255", put("/source_model/input/mean", [123.7, 116.3, 103.5]), "invalid_request", "/source_model/input/mean"),
    ("std of 0 to 255", put("/source_model/input/std", [58.4, 57.1, 57.4]), "invalid_request", "/source_model/input/std"),
    ("no pairs", put("/data/pairs", None), "invalid_request", "/data/pairs"),
    ("huge seed", put("/seed", 2**40), "invalid_request", "/seed"),
    ("null character", put("/name", "a\0b"), "invalid_request", "/name"),
    ("null character deep inside", put("/labels/team", "a\0b"), "invalid_request", "/labels/team"),
    ("null character in a name", put("/labels/te\0am", "a"), "invalid_request", "/labels"),
    ("a name of two lines", put("/name", "a\njob_b"), "invalid_request", "/name"),
    ("a name that moves the cursor", put("/name", "\x1b[2J"), "invalid_request", "/name"),
    ("a label of two lines", put("/labels/team", "a\nsite:b"), "invalid_request", "/labels/team"),
    ("a label of two lines by Unicode's own break", put("/labels/team", "a\u2028site:b"), "invalid_request", "/labels/team"),
    ("a label's key of two lines", put("/labels/te\nam", "a"), "invalid_request", "/labels/te\nam"),
    ("another scheme", put("/data/target/uri", "http://127.0.0.1/x"), "reference_scheme", "/data/target/uri"),
    ("another host", put("/data/target/uri", "file://elsewhere/x"), "reference_scheme", "/data/target/uri"),
    ("half an address", put("/data/target/uri", "file://["), "reference_scheme", "/data/target/uri"),
    ("half an address without a scheme", put("/data/target/uri", "//["), "reference_scheme", "/data/target/uri"),
    ("half an address of the web", put("/data/target/uri", "http://[x"), "reference_scheme", "/data/target/uri"),
    ("outside the roots", put("/data/target/uri", "file:///etc"), "reference_outside_roots", "/data/target/uri"),
    ("dots", put("/data/target/uri", "file://ROOT/target/../target"), "reference_outside_roots", "/data/target/uri"),
    ("encoded dots", put("/data/target/uri", "file://ROOT/%2e%2e/x"), "reference_outside_roots", "/data/target/uri"),
    ("missing folder", put("/data/target/uri", "file://ROOT/nothing"), "reference_missing", "/data/target/uri"),
    ("a file as a folder", put("/data/target/uri", "file://ROOT/target/000.png"), "layout_mismatch", "/data/target/uri"),
    ("no such pair side", put("/data/pairs/target", "infrared"), "layout_mismatch", "/data/pairs/uri"),
    ("unknown layout", put("/data/target/layout", "imagefolder"), "invalid_request", "/data/target/layout"),
    ("unknown layout of pairs", put("/data/pairs/layout", "folder"), "invalid_request", "/data/pairs/layout"),
    ("bounds that auto does not heed", put("/data/target/scaling", {"low": 300, "high": 900}), "invalid_request", "/data/target/scaling"),
    ("a bound that full_range does not heed", put("/data/pairs/scaling", {"kind": "full_range", "high": 9}), "invalid_request", "/data/pairs/scaling"),
    ("pairs of an image and itself", put("/data/pairs/target", "rgb"), "invalid_request", "/data/pairs/target"),
    ("unknown output", put("/outputs", ["onnx", "torch"]), "invalid_request", "/outputs/1"),
    ("output that is no text", put("/outputs", [1]), "invalid_request", "/outputs/0"),
    ("outputs that are no list", put("/outputs", "onnx"), "invalid_request", "/outputs"),
    ("unknown field of the export", put("/export", {"normalise": True}), "unknown_field", "/export/normalise"),
    ("an export of nothing", put("/export", {"normalize_in_graph": True}), "invalid_request", "/export"),
    ("too many pictures", put("/pictures", 17), "invalid_request", "/pictures"),
    ("pictures that are no number", put("/pictures", "all"), "invalid_request", "/pictures"),
    ("side that climbs", put("/data/pairs/target", "../x"), "invalid_request", "/data/pairs/target"),
]  # fmt: skip


@on_sqlite
@pytest.mark.parametrize(("change", "code", "pointer"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_bad_field_is_named(
    service: Service, request_body: dict[str, Any], data_root: Path, change: Change, code: str, pointer: str | None
) -> None:
    body = copy.deepcopy(request_body)
    change(body, data_root)
    refused(service, body, code, pointer)


def not_utf8(root: Path) -> None:
    image = root / "pairs/rgb/003.png"
    image.rename(image.with_name(os.fsdecode(b"hall\xff.png")))


FOLDERS: list[tuple[str, Callable[[Path], object], dict[str, str], str, str]] = [
    ("link out of the roots", link_out, {"target": "link"}, "reference_outside_roots", "/data/target/uri"),
    ("image that is a link out", image_link_out, {}, "reference_outside_roots", "/data/target/uri"),
    ("no images", lambda root: (root / "empty").mkdir(), {"target": "empty"}, "no_images", "/data/target/uri"),
    ("one image", few_images, {}, "too_few_images", "/data/target/uri"),
    ("pair without partner", lambda root: (root / "pairs/rgb/003.png").unlink(), {}, "pairs_unmatched", "/data/pairs/uri"),
    ("name that is not UTF-8", not_utf8, {}, "pairs_unmatched", "/data/pairs/uri"),
    ("class that the model lacks", lambda root: make_images(root / "test/cup", ["1.png"]), {}, "unknown_class", "/data/evaluation/uri"),
    ("image without a class", lambda root: make_images(root / "test", ["1.png"]), {}, "layout_mismatch", "/data/evaluation/uri"),
]  # fmt: skip


@on_sqlite
@pytest.mark.parametrize(("act", "uris", "code", "pointer"), [case[1:] for case in FOLDERS], ids=[case[0] for case in FOLDERS])
def test_bad_data_are_named(
    service: Service,
    request_body: dict[str, Any],
    data_root: Path,
    act: Callable[[Path], object],
    uris: dict[str, str],
    code: str,
    pointer: str,
) -> None:
    act(data_root)
    for name, folder in uris.items():
        request_body["data"][name]["uri"] = f"file://{data_root}/{folder}"
    refused(service, request_body, code, pointer)


@on_sqlite
def test_what_is_escaped_and_no_null_character_is_taken_as_it_is(service: Service, request_body: dict[str, Any]) -> None:
    request_body["name"] = r"C:\u0000"
    answer = submit(service.client, request_body, safetensors())
    assert (answer.status_code, answer.json()["name"]) == (202, r"C:\u0000")


def test_a_byte_order_mark_is_passed_over() -> None:
    """Windows' editors and shells begin a file of UTF-8 with it."""
    assert parse(DatasetDescription, b"\xef\xbb\xbf" + b'{"name": "hall 3"}').name == "hall 3"


def test_a_null_character_below_long_names_costs_no_memory() -> None:
    """A body of 34 kB, for each of whose numbers a pointer of 57 kB would be made."""
    names = ["~" * 200] * 150
    body = "".join(f'{{"{name}":' for name in names) + "[" + "0," * 2000 + r'"\u0000"]' + "}" * len(names)
    tracemalloc.start()
    try:
        with pytest.raises(Problem, match="null character") as refusal:
            parse(DatasetDescription, body.encode())
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()
    assert refusal.value.pointer == ("/" + "~0" * 200) * 150 + "/2000"


def test_names_are_counted_and_not_what_looks_like_one() -> None:
    texts = [':c"', 'a": b', "\\", *(f":c{n}" for n in range(2500))]
    described = {"architecture": "torchvision/resnet18", "classes": texts, "input": {"size": 224}}
    for body in (json.dumps(described), json.dumps(described, indent=1)):
        assert parse(SourceModelDescription, body.encode()).classes == tuple(texts)
    for body in ('{"a" : 1,' * 2001, '{"a":1}' * 1999 + '{"\\"": 1,"b" :{', '{"a":1}' * 2000 + '"":"' + '\\"' * 200_000 + "\\"):
        began = time.process_time()
        with pytest.raises(Problem, match="more than 2000 names"):
            parse(DatasetDescription, body.encode())
        assert time.process_time() - began < 2


def test_a_list_names_only_what_lies_below_it(service: Service, request_body: dict[str, Any], data_root: Path) -> None:
    unreadable_list(data_root)
    request_body["data"]["target"] = {"uri": f"file://{data_root}/list.txt", "layout": "list"}
    refused(service, request_body, "reference_outside_roots", "/data/target/uri")


def refused(service: Service, body: dict[str, Any], code: str, pointer: str | None) -> None:
    answer = submit(service.client, body, safetensors())
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (problem["code"], problem.get("pointer")) == (code, pointer), problem
    assert problem["status"] == answer.status_code and problem["remedy"] and problem["detail"]
    assert service.client.get("/jobs").json()["data"] == []
    assert service.client.get("/source-models").json()["data"] == []
    assert [path for path in service.blobs.folder.rglob("*") if path.is_file()] == []


@on_sqlite
@pytest.mark.parametrize(
    ("name", "code"),
    [("a\0b.png", "reference_missing"), ("x" * 300 + ".png", "reference_unreadable"), ("x/" * 5000 + "a.png", "reference_unreadable")],
    ids=["null character", "long name", "long path"],
)  # fmt: skip
def test_a_list_that_names_what_no_disk_can_hold(
    service: Service, request_body: dict[str, Any], data_root: Path, name: str, code: str
) -> None:
    (data_root / "list.txt").write_text(f"target/000.png\n{name}\n")
    request_body["data"]["target"] |= {"uri": f"file://{data_root}/list.txt", "layout": "list"}
    refused(service, copy.deepcopy(request_body), code, "/data/target/uri")
    (data_root / "pairs.csv").write_text(f"rgb,depth\npairs/rgb/000.png,{name}\n")
    request_body["data"]["target"] = {"uri": f"file://{data_root}/target"}
    request_body["data"]["pairs"] |= {"uri": f"file://{data_root}/pairs.csv"}
    refused(service, request_body, code, "/data/pairs/uri")


def test_the_nearest_known_field_is_named(service: Service, request_body: dict[str, Any]) -> None:
    problem = submit(service.client, request_body | {"metod": "tgmb"}, safetensors()).json()
    assert "'method'" in problem["detail"]
    request_body["settings"] = {"bridgin": {"steps": 5}}
    assert "'bridging'" in submit(service.client, request_body, safetensors()).json()["detail"]


def test_every_fault_is_listed(service: Service, request_body: dict[str, Any]) -> None:
    problem = submit(service.client, request_body | {"metod": 1, "seed": -1}, safetensors()).json()
    assert {error["pointer"] for error in problem["errors"]} == {"/metod", "/seed"}


UNKNOWN = {f"w{number}": 1 for number in range(1900)}


@pytest.mark.parametrize(
    ("change", "code", "pointer", "errors"),
    [
        (UNKNOWN, "unknown_field", "/w0", len(UNKNOWN)),
        ({"labels": {f"!{number}": "" for number in range(1900)}}, "invalid_request", "/labels/!0", 1900),
        ({f"w{number}": 1 for number in range(70_000)}, "invalid_request", None, 1),
        ({"outputs": ["onx"] * 150_000}, "invalid_request", "/outputs/0", 1),
        ({"further_source_models": [{}] * 150_000}, "invalid_request", "/further_source_models/0/id", 1),
    ],
    ids=["unknown fields", "labels", "more fields than any request has", "outputs", "further source models"],
)
def test_of_very_many_faults_the_first_are_told_soon(change: dict[str, Any], code: str, pointer: str | None, errors: int) -> None:
    body = {"source_model": {"id": "model_a"}, "method": "shot", "data": {"target": {"uri": "file:///target"}}} | change
    raw = json.dumps(body).encode()
    began = time.thread_time()
    with pytest.raises(Problem) as caught:
        parse(JobRequest, raw)
    assert time.thread_time() - began < 0.5, "seconds of one core, in which nothing else is answered"
    problem = caught.value
    assert (problem.code, problem.pointer) == (code, pointer)
    assert len(problem.context.get("errors", [problem])) + problem.context.get("more_errors", 0) == errors
    assert len(json.dumps(problem.document())) < 20_000


def test_of_very_many_types_of_messages_the_first_that_is_none_is_told_soon() -> None:
    raw = b'{"url": "https://x", "types": [' + b",".join([b"1"] * 500_000) + b"]}"
    began = time.thread_time()
    with pytest.raises(Problem) as caught:
        parse(WebhookRequest, raw)
    assert (caught.value.code, caught.value.pointer) == ("invalid_request", "/types/0")
    assert time.thread_time() - began < 0.5


def test_ten_thousand_classes_are_compared_soon() -> None:
    classes = [f"class {number}" for number in range(10_000)]
    body = {"architecture": "torchvision/resnet18", "classes": classes}
    raw = json.dumps(body).encode()
    began = time.thread_time()
    assert parse(SourceModelDescription, raw).classes == tuple(classes)
    assert time.thread_time() - began < 0.5
    with pytest.raises(Problem, match=r"named more than once: class 0, class 7$"):
        parse(SourceModelDescription, json.dumps(body | {"classes": [*classes[:-3], "class 7", "class 0", "class 7"]}).encode())


def test_other_requests_are_answered_while_one_is_looked_at(
    service: Service, request_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes a while is not done in the thread that all requests share."""
    calls = []

    def spied(*given: Any) -> Any:
        calls.append(asyncio._get_running_loop())  # None: not in a thread of one
        return parse(*given)

    for routes in (job_routes, source_model_routes, dataset_routes):
        monkeypatch.setattr(routes, "parse", spied)
    assert submit(service.client, request_body, safetensors()).status_code == 202
    parts = {"description": (None, json.dumps(request_body["source_model"])), "source_model": ("m", safetensors(seed=1))}
    assert service.client.post("/source-models", files=parts).status_code == 201
    assert service.client.post("/datasets", files={"description": (None, "{}"), "dataset": ("d", b"x")}).status_code == 422
    assert calls == [None, None, None]


def test_no_file_and_no_id(service: Service, request_body: dict[str, Any]) -> None:
    for answer in (submit(service.client, request_body), service.client.post("/jobs", json=request_body)):
        assert answer.status_code == 422 and answer.json()["code"] == "missing_file"


def test_an_unknown_source_model(service: Service, request_body: dict[str, Any]) -> None:
    body = request_body | {"source_model": {"id": "model_00000000000000000000000000"}}
    answer = service.client.post("/jobs", json=body)
    assert answer.status_code == 404 and answer.json()["pointer"] == "/source_model/id"


@on_sqlite
@pytest.mark.parametrize(
    ("content", "type_", "code"),
    [
        (b"{", "application/json", "malformed_json"),
        (b"[]", "application/json", "invalid_request"),
        (b"\xff\xfe", "application/json", "malformed_json"),
        (b"{}", "text/plain", "unsupported_media_type"),
        (b" " * (2**20 + 1), "application/json", "payload_too_large"),
        (b"[" * 5000, "application/json", "malformed_json"),
    ],
)
def test_bad_bodies(service: Service, content: bytes, type_: str, code: str) -> None:
    answer = service.client.post("/jobs", content=content, headers={"Content-Type": type_})
    assert answer.json()["code"] == code, answer.text
