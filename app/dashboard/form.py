"""The form of a new job: which field is which place of the request, and how a text becomes the value there, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from app.errors import Problem
from app.jobs.service import labels_of
from app.method_settings import Settings
from app.spec import BASELINES, ImagesReference, JobRequest, Method, Modality, PairsReference

Kind = Literal["line", "lines", "labels", "json", "choice"]


def choices(annotation: Any) -> tuple[str, ...]:
    """What a Literal, or several of them, can be."""
    return tuple(one for part in get_args(annotation) for one in ([part] if isinstance(part, str) else choices(part)))


LAYOUTS = choices(ImagesReference.model_fields["layout"].annotation)
PAIRS_LAYOUTS = choices(PairsReference.model_fields["layout"].annotation)


@dataclass(frozen=True)
class Field:
    """pointer: of its value in the request. lines: a text a line; labels: key:value a line."""

    name: str
    pointer: str
    words: str
    hint: str = ""
    kind: Kind = "line"
    default: str = ""
    options: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """The value. Raises Problem invalid_request."""
        match self.kind:
            case "lines":
                return [line.strip() for line in text.splitlines() if line.strip()]
            case "labels":
                return labels_of([line.strip() for line in text.splitlines() if line.strip()], self.pointer)
            case "json":
                try:
                    return json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise Problem("invalid_request", f"this is not JSON: {error}", pointer=self.pointer) from error
        return text.strip()

    def show(self, value: Any) -> str:
        """The text of a value that was accepted."""
        match self.kind:
            case "lines":
                return "\n".join(value)
            case "labels":
                return "\n".join(f"{key}:{one}" for key, one in value.items())
            case "json":
                short = json.dumps(value, ensure_ascii=False)
                return short if len(short) < 60 else json.dumps(value, indent=2, ensure_ascii=False)
        return str(value)


_SCALING = 'JSON, such as {"kind": "millimetres", "high": 5000}; left out: found by itself.'
GROUPS: dict[str, tuple[Field, ...]] = {
    "Job": (
        Field("name", "/name", "Name"),
        Field("labels", "/labels", "Labels", "One a line, as key:value.", "labels"),
        Field("priority", "/priority", "Priority", "-100 to 100; of your own jobs the higher goes first.", "line", "0"),
    ),
    "Source model": (
        Field("model", "/source_model/id", "Stored source model", "Or send a file, and say below how to read it.", "choice"),
        Field(
            "architecture", "/source_model/architecture", "Architecture", "Of the file, such as torchvision/resnet18 or timm/…"
        ),
        Field("classes", "/source_model/classes", "Classes", "Of the file: one a line, in the order of its outputs.", "lines"),
        Field("input", "/source_model/input", "Input", "Of the file: JSON of size, mean, std, resize.", "json", '{"size": 224}'),
    ),
    "Target images": (
        Field(
            "target_uri",
            "/data/target/uri",
            "Where they lie",
            "Unlabelled images of the new sensor: file:///folder, or what else the service takes.",
        ),
        Field("target_layout", "/data/target/layout", "Layout", "", "choice", "folder", LAYOUTS),
        Field("modality", "/data/target/modality", "Modality", "", "choice", "depth", get_args(Modality)),
        Field("target_scaling", "/data/target/scaling", "Scaling", _SCALING, "json"),
    ),
    "Pairs": (
        Field("pairs_uri", "/data/pairs/uri", "Where they lie", "RGB and the new sensor, of other things than the task's."),
        Field("pairs_layout", "/data/pairs/layout", "Layout", "", "choice", "pairs", PAIRS_LAYOUTS),
        Field("pairs_source", "/data/pairs/source", "Folder or column of RGB", "", "line", "rgb"),
        Field("pairs_target", "/data/pairs/target", "Folder or column of the new sensor", "", "line", "depth"),
        Field("pairs_scaling", "/data/pairs/scaling", "Scaling", _SCALING, "json"),
    ),
    "Evaluation set": (
        Field(
            "evaluation_uri", "/data/evaluation/uri", "Where it lies", "Optional: labelled images, looked at once, at the end."
        ),
        Field("evaluation_layout", "/data/evaluation/layout", "Layout", "", "choice", "folder", LAYOUTS),
    ),
    "Method": (
        Field("method", "/method", "Method", "", "choice", "tgmb_tgkt", get_args(Method)),
        Field("seed", "/seed", "Seed", "", "line", "0"),
        Field("device", "/device", "Device", "", "choice", "auto", ("auto", "cpu", "cuda")),
        Field(
            "pictures",
            "/pictures",
            "Pictures",
            "Target images to show with the result, 0 to 16; they are kept with it.",
            "line",
            "6",
        ),
        Field("settings", "/settings", "Settings", 'JSON, such as {"transfer": {"epochs": 5}}; empty: the defaults.', "json"),
    ),
}
FIELDS = tuple(field for group in GROUPS.values() for field in group)
FILE = "source_model"
FILE_POINTER = "/source_model"
KEY = "key"
"""Hidden: the Idempotency-Key, so that a form that is sent twice makes one job."""
REST = Field("rest", "", "Anything else of the request", 'JSON, such as {"further_source_models": [{"id": "model_…"}]}.', "json")
"""What the other fields have no place for."""
TEXTS = (*(field.name for field in FIELDS), REST.name, KEY)
_OPTIONAL = ("/data/pairs", "/data/evaluation")


def defaults() -> dict[str, str]:
    return {field.name: field.default for field in (*FIELDS, REST)}


def request_of(texts: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The request as JSON has it, and the faults of single fields, (pointer, what is wrong). What is left empty is not in it;
    nor is anything of a set that has no address, or of a file where a stored source model is named."""
    request: dict[str, Any] = {"source_model": {}, "data": {"target": {}}}
    faults = []
    absent = [
        prefix for prefix in _OPTIONAL if not any(texts.get(f.name, "").strip() for f in FIELDS if f.pointer == f"{prefix}/uri")
    ]
    if texts.get("model", "").strip():
        absent.append("/source_model")
        request["source_model"] = {"id": texts["model"].strip()}
    for field in FIELDS:
        text = texts.get(field.name, "")
        if not text.strip() or any(field.pointer.startswith(f"{prefix}/") for prefix in absent):
            continue
        try:
            _put(request, field.pointer, field.read(text))
        except Problem as problem:
            faults.append((field.pointer, problem.detail))
    if texts.get(REST.name, "").strip():
        try:
            _fill(request, REST.read(texts[REST.name]))
        except Problem as problem:
            faults.append((REST.pointer, problem.detail))
    return request, faults


def texts_of(accepted: dict[str, Any]) -> dict[str, str]:
    """The form of a job like one that was accepted: what is at its default is left to be so, and what its field
    could not say is of the rest. A setting's default is its preset's."""
    known = JobRequest.model_validate(accepted)
    request = known.model_dump(mode="json", exclude_defaults=True, exclude={"settings"})
    usual = Settings(preset=known.settings.preset)
    settings = _unlike(known.settings.model_dump(mode="json"), usual.model_dump(mode="json"))
    if known.method in BASELINES or usual.preset != Settings().preset:  # a baseline that names none takes another
        settings = {"preset": usual.preset} | settings
    if settings:
        request["settings"] = settings
    texts = defaults()
    for field in FIELDS:
        value: Any = request
        for part in field.pointer.split("/")[1:]:
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and _comes_back(field, value):
            texts[field.name] = field.show(value)
            _take(request, field.pointer)
    texts[REST.name] = REST.show(request) if request else ""
    return texts


def _comes_back(field: Field, value: Any) -> bool:
    """The field's text gives the value again, unlike that of a label with a line break in it."""
    text = field.show(value)
    try:
        return text.strip() != "" and field.read(text) in (value, str(value))
    except Problem:
        return False


def placed(faults: list[tuple[str, str]], texts: Mapping[str, str]) -> dict[str, list[str]]:
    """What is wrong, by the name of the field that is nearest to the pointer; what is of none, by that of the rest, or "" where
    that is empty."""
    elsewhere = REST.name if texts.get(REST.name, "").strip() else ""
    sets = {field.pointer.removesuffix("/uri"): field.name for field in FIELDS if field.pointer.endswith("/uri")}
    places = {field.pointer: field.name for field in FIELDS} | {FILE_POINTER: FILE, REST.pointer: REST.name} | sets
    found: dict[str, list[str]] = {}
    for pointer, detail in faults:
        near = max((place for place in places if pointer == place or pointer.startswith(f"{place}/")), key=len, default="")
        name = places.get(near, elsewhere)
        inner = pointer.removeprefix(near)
        found.setdefault(name, []).append(f"{inner}: {detail}" if inner and name else detail)
    return found


def _unlike(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """What differs, at whatever depth, of two dicts with the same keys."""
    return {
        name: _unlike(value, usual[name]) if isinstance(value, dict) else value
        for name, value in values.items()
        if value != usual[name]
    }


def _put(request: dict[str, Any], pointer: str, value: Any) -> None:
    *parents, last = pointer.split("/")[1:]
    place = request
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value


def _take(request: dict[str, Any], pointer: str) -> None:
    """Out of the request, with what is empty then."""
    first, _, rest = pointer[1:].partition("/")
    if rest:
        _take(request[first], f"/{rest}")
    if not rest or not request[first]:
        del request[first]


def _fill(request: dict[str, Any], more: Any) -> None:
    """What is not there yet. Raises Problem invalid_request."""
    if not isinstance(more, dict):
        raise Problem("invalid_request", "this is not a JSON object")
    for name, value in more.items():
        if isinstance(request.get(name), dict) and isinstance(value, dict):
            _fill(request[name], value)
        elif name not in request:
            request[name] = value
        else:
            raise Problem("invalid_request", f"{name!r} has a field of its own above")
