"""WebDataset's samples, as they lie on a disk or in a listing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app import layouts
from app.errors import Problem
from app.listing import Listing
from app.spec import DataSpec, ImagesReference, PairsReference

CLASSES = ["box", "mug"]
DATASET = "dataset://dataset_01kb3x5v0nf2pamwx8h1q4c7ze"
SAMPLES = {
    "a.tar/1.jpg": b"", "a.tar/1.cls": b"1\n", "a.tar/1.json": b"{}", "a.tar/2.png": b"", "a.tar/2.cls": b"box",
    "b.tar/1.png": b"", "b.tar/1.cls": b" mug ", "b.tar/.x.png": b"", "left/3.depth.png": b"", "left/3.rgb.jpg": b"",
    "left/4.rgb.left.png": b"", "left/x/3.rgb.png": b"", "left/x/3.depth.tiff": b"", "left/5.png": b"",
}  # fmt: skip


@pytest.fixture(params=["disk", "listing"])
def tree(request: pytest.FixtureRequest, tmp_path: Path):
    """(URI, roots or tree) of files."""

    def make(files: dict[str, bytes]):
        if request.param == "listing":
            return DATASET, Listing({name: data if name.endswith(".cls") else None for name, data in files.items()})
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
        return str(tmp_path), [tmp_path]

    return make


def images(uri: str) -> ImagesReference:
    return ImagesReference(uri=uri, layout="webdataset")


def refusal(call, *arguments) -> Problem:
    with pytest.raises(Problem) as caught:
        call(*arguments)
    return caught.value


def test_samples_have_an_image_and_a_label(tree):
    uri, roots = tree({name: data for name, data in SAMPLES.items() if ".tar" in name})
    assert [one.name for one in layouts.images(images(uri), roots)] == ["a.tar/1.jpg", "a.tar/2.png", "b.tar/1.png"]
    found = layouts.labelled(images(uri), CLASSES, roots)
    assert [(one.name, one.label) for one in found] == [("a.tar/1.jpg", "mug"), ("a.tar/2.png", "box"), ("b.tar/1.png", "mug")]


def test_samples_are_pairs_by_their_fields(tree):
    uri, roots = tree(SAMPLES)
    rows = layouts.pairs(PairsReference(uri=f"{uri}/left", layout="webdataset"), roots)
    assert [(one.name, other.name) for one, other in rows] == [
        ("3.rgb.jpg", "3.depth.png"),
        ("x/3.rgb.png", "x/3.depth.tiff"),
    ]
    named = PairsReference(uri=f"{uri}/left", layout="webdataset", source="rgb.left", target="depth")
    problem = refusal(layouts.pairs, named, roots)
    assert (problem.code, problem.context["names"]) == ("pairs_unmatched", ["3", "4", "x/3"])
    assert refusal(layouts.pairs, named.model_copy(update={"source": "nir", "target": "ir"}), roots).code == "no_images"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"a.tar/1.depth.png": b""}, "layout_mismatch", "'a.tar/1' has several images"),
        ({"a.tar/9.png": b""}, "layout_mismatch", "a.tar/9.png"),
        ({"a.tar/1.cls": b"cup"}, "unknown_class", "cup"),
        ({"a.tar/1.cls": b"x" * 2000}, "layout_mismatch", "larger than"),
        ({"a.tar/1.cls": b"\xff"}, "layout_mismatch", "UTF-8"),
    ],
)
def test_what_is_wrong_with_a_sample_is_named(tree, change: dict[str, bytes], code: str, words: str):
    uri, roots = tree({name: data for name, data in SAMPLES.items() if ".tar" in name} | change)
    problem = refusal(layouts.labelled, images(uri), CLASSES, roots)
    assert problem.code == code and words in problem.detail and problem.pointer == "/data/evaluation/uri"


def test_a_label_that_is_a_link_out_of_the_data_is_not_followed(tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "1.png").touch()
    (tmp_path / "secret").write_text("box")
    (root / "1.cls").symlink_to(tmp_path / "secret")
    assert refusal(layouts.labelled, images(str(root)), CLASSES, [root]).code == "reference_outside_roots"


def test_the_layout_is_for_images_and_pairs_without_sensors():
    DataSpec.model_validate({"target": {"uri": "/a", "layout": "webdataset"}, "pairs": {"uri": "/b", "layout": "webdataset"}})
    with pytest.raises(ValidationError, match="knows no sensors"):
        DataSpec.model_validate({"target": {"uri": "/a", "layout": "webdataset", "sensor": "kv1"}})
