"""Which images a reference names: the same for the front end and the engine, and nothing outside the opened folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import layouts
from app.errors import Problem
from app.listing import Listing
from app.references import shown
from app.spec import DataSpec, ImagesReference, PairsReference

CLASSES = ["box", "mug"]


def touch(folder: Path, *names: str) -> Path:
    """Listing decodes nothing: empty files do."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def folder_reference(path: Path | str, layout: str = "folder") -> ImagesReference:
    return ImagesReference(uri=str(path), layout=layout)


def names(entries: list[layouts.Entry]) -> list[str]:
    return [entry.name for entry in entries]


def refusal(call, *arguments) -> tuple[str, str | None]:
    with pytest.raises(Problem) as caught:
        call(*arguments)
    return caught.value.code, caught.value.pointer


def test_a_folder_gives_its_images_by_name_and_nothing_else(root):
    touch(root, "b.png", "a.JPG", "c/d.tif", "c/e.jpeg", "notes.txt", ".hidden.png", ".git/x.png", "f.tiff", "movie.mp4")
    assert names(layouts.images(folder_reference(root), [root])) == ["a.JPG", "b.png", "f.tiff", "c/d.tif", "c/e.jpeg"]
    assert names(layouts.images(folder_reference(f"file://{root}"), [root])) == names(layouts.images(folder_reference(root)))


def test_a_uri_is_unquoted(root):
    touch(root, "my data/a.png")
    assert names(layouts.images(folder_reference(f"file://{root}/my%20data"), [root])) == ["a.png"]


def test_the_classes_of_an_unlabelled_set_are_not_kept(root):
    touch(root, "box/a.png", "mug/b.png")
    (root / "list.txt").write_text("box/a.png 0\nmug/b.png 1\n")
    for reference in (folder_reference(root), folder_reference(root / "list.txt", "list")):
        found = layouts.images(reference, [root])
        assert names(found) == ["box/a.png", "mug/b.png"] and all(entry.label is None for entry in found)


def test_a_labelled_folder_names_its_classes(root):
    touch(root, "box/a.png", "mug/deep/b.png")
    assert [(e.name, e.label) for e in layouts.labelled(folder_reference(root), CLASSES, [root])] == [
        ("box/a.png", "box"),
        ("mug/deep/b.png", "mug"),
    ]


def test_a_list_takes_class_names_or_numbers_comments_and_spaces(root):
    touch(root, "x/a b.png", "c.png", "d.png")
    (root / "list.txt").write_text("\ufeff# SHOT\nx/a b.png 1\n\nc.png mug\n  d.png 0  \n", encoding="utf-8")
    found = layouts.labelled(folder_reference(root / "list.txt", "list"), CLASSES, [root])
    assert [(e.name, e.label) for e in found] == [("x/a b.png", "mug"), ("c.png", "mug"), ("d.png", "box")]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda root: root / "missing", "reference_missing"),
        (lambda root: touch(root, "a.png") / "a.png", "layout_mismatch"),
        (lambda root: touch(root, "notes.txt"), "no_images"),
        (lambda root: "https://example.org/data", "reference_scheme"),
        (lambda root: "file://elsewhere/data", "reference_scheme"),
        (lambda root: f"file://{root}/a%00b", "reference_scheme"),
        (lambda root: root / ".." / "root", "reference_outside_roots"),
        (lambda root: f"file://{root}/%2e%2e/root", "reference_outside_roots"),
        (lambda root: root.parent, "reference_outside_roots"),
        (lambda root: root.parent / "no such folder", "reference_outside_roots"),
        (lambda root: Path("/etc"), "reference_outside_roots"),
        (lambda root: "relative/path", "reference_outside_roots"),
        (lambda root: touch(root.parent / "root2", "a.png"), "reference_outside_roots"),
    ],
)
def test_a_reference_that_may_not_or_cannot_be_read_is_refused(make, code, root):
    assert refusal(layouts.images, folder_reference(make(root)), [root]) == (code, "/data/target/uri")


def test_links_lead_nowhere_they_should_not(root, tmp_path):
    secret = touch(tmp_path / "secret", "s.png", "folder/t.png")
    touch(root, "data/a.png", "other/b.png")
    (root / "way_out").symlink_to(secret)
    assert refusal(layouts.images, folder_reference(root / "way_out"), [root])[0] == "reference_outside_roots"
    (root / "data/folder").symlink_to(secret / "folder")
    (root / "data/b.png").symlink_to(root / "other/b.png")
    assert names(layouts.images(folder_reference(root / "data"), [root])) == ["a.png", "b.png"]
    (root / "data/s.png").symlink_to(secret / "s.png")
    assert refusal(layouts.images, folder_reference(root / "data"), [root])[0] == "reference_outside_roots"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("../secret/s.png", "reference_outside_roots"),
        ("/etc/hostname.png", "reference_outside_roots"),
        ("link.png", "reference_outside_roots"),
        ("gone.png", "reference_missing"),
        ("just_one_word", "layout_mismatch"),
    ],
)
def test_a_list_can_name_only_what_lies_below_it(line, code, root, tmp_path):
    touch(tmp_path / "secret", "s.png")
    (root / "link.png").symlink_to(tmp_path / "secret/s.png")
    (root / "list.txt").write_text(f"{line}\n")
    assert refusal(layouts.images, folder_reference(root / "list.txt", "list"), [root])[0] == code


def test_a_list_that_is_not_text_is_refused(root):
    (root / "list.txt").write_bytes(b"\xff\xfe\x00\x01")
    assert refusal(layouts.images, folder_reference(root / "list.txt", "list"), [root])[0] == "layout_mismatch"
    assert refusal(layouts.images, folder_reference(root, "list"), [root])[0] == "layout_mismatch"


def test_a_class_that_the_model_does_not_know_is_named(root):
    touch(root, "box/a.png", "spoon/b.png")
    with pytest.raises(Problem) as caught:
        layouts.labelled(folder_reference(root), CLASSES, [root])
    assert (caught.value.code, caught.value.pointer) == ("unknown_class", "/data/evaluation/uri")
    assert caught.value.context["classes"] == ["spoon"]
    (root / "list.txt").write_text("box/a.png 7\n")
    assert refusal(layouts.labelled, folder_reference(root / "list.txt", "list"), CLASSES, [root])[0] == "unknown_class"


@pytest.mark.parametrize("label", ["7" * 5000, "y" * 2_000_000])
def test_a_label_without_end_is_told_in_few_words(root, label):
    touch(root, "a.png")
    (root / "list.txt").write_text(f"a.png {label}\n")
    with pytest.raises(Problem) as caught:
        layouts.labelled(folder_reference(root / "list.txt", "list"), CLASSES, [root])
    assert caught.value.code == "unknown_class"
    assert len(str(caught.value.document())) < 5000


def test_a_line_or_a_heading_of_megabytes_is_told_in_few_words():
    base, name = f"dataset://dataset_{'0' * 26}", "y" * 2_000_000
    tree = Listing({"list.txt": f"{name}.png\n".encode(), "pairs.csv": f"{name}\na.png\n".encode(), "a.png": None})
    for read, reference in (
        (layouts.images, ImagesReference(uri=f"{base}/list.txt", layout="list")),
        (layouts.pairs, PairsReference(uri=f"{base}/pairs.csv")),
    ):
        with pytest.raises(Problem) as caught:
            read(reference, tree)
        assert len(str(caught.value.document())) < 5000


def test_images_without_a_class_are_refused(root):
    touch(root, "box/a.png", "stray.png")
    assert refusal(layouts.labelled, folder_reference(root), CLASSES, [root])[0] == "layout_mismatch"


def test_pairs_match_by_name_without_the_ending(root):
    touch(root, "rgb/x/1.jpg", "rgb/2.png", "depth/x/1.png", "depth/2.tif")
    found = layouts.pairs(PairsReference(uri=str(root)), [root])
    assert [(s.name, t.name) for s, t in found] == [("2.png", "2.tif"), ("x/1.jpg", "x/1.png")]


def test_pairs_that_do_not_match_up_are_named(root):
    touch(root, "rgb/1.jpg", "rgb/2.jpg", "depth/1.png", "depth/3.png")
    with pytest.raises(Problem) as caught:
        layouts.pairs(PairsReference(uri=str(root)), [root])
    assert (caught.value.code, caught.value.pointer) == ("pairs_unmatched", "/data/pairs/uri")
    assert caught.value.context["names"] == ["2", "3"]
    touch(root, "rgb/1.png")
    assert refusal(layouts.pairs, PairsReference(uri=str(root)), [root])[0] == "pairs_unmatched"


def test_pairs_without_one_of_the_folders_or_any_image_are_refused(root):
    touch(root, "rgb/1.jpg")
    assert refusal(layouts.pairs, PairsReference(uri=str(root)), [root])[0] == "layout_mismatch"
    touch(root, "left/notes.txt", "right/notes.txt")
    assert refusal(layouts.pairs, PairsReference(uri=str(root), source="left", target="right"), [root])[0] == "no_images"


def test_a_side_that_leads_out_of_the_roots_is_not_entered(root, tmp_path):
    touch(root, "rgb/a.png")
    touch(tmp_path / "elsewhere", "a.png")
    (root / "depth").symlink_to(tmp_path / "elsewhere")
    assert refusal(layouts.pairs, PairsReference(uri=str(root)), [root]) == ("reference_outside_roots", "/data/pairs/uri")
    assert len(layouts.pairs(PairsReference(uri=str(root)), [root, tmp_path])) == 1


def test_a_csv_names_pairs(root):
    touch(root, "a/1.jpg", "b/one.png", "a/2.jpg", "b/two.png")
    (root / "pairs.csv").write_text("scene,depth,rgb\nhall,b/one.png,a/1.jpg\nhall,b/two.png,a/2.jpg\n")
    found = layouts.pairs(PairsReference(uri=str(root / "pairs.csv")), [root])
    assert [(s.name, t.name) for s, t in found] == [("a/1.jpg", "b/one.png"), ("a/2.jpg", "b/two.png")]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("rgb,infrared\n1.jpg,1.png\n", "layout_mismatch"),
        ("rgb,depth\n1.jpg,\n", "pairs_unmatched"),
        ("rgb,depth\n1.jpg\n", "pairs_unmatched"),
        ("rgb,depth\n1.jpg,1.jpg\n", "pairs_unmatched"),
        ("rgb,depth\n1.jpg,../1.png\n", "reference_outside_roots"),
        ("rgb,depth\n1.jpg,2.png\n", "reference_missing"),
        ('rgb,depth\n"1.jpg,2.png\n', "layout_mismatch"),
        ("rgb,depth\n", "no_images"),
        ("", "layout_mismatch"),
    ],
)
def test_a_csv_that_does_not_name_pairs_is_refused(text, code, root):
    touch(root, "1.jpg", "1.png")
    (root / "pairs.csv").write_text(text)
    assert refusal(layouts.pairs, PairsReference(uri=str(root / "pairs.csv")), [root]) == (code, "/data/pairs/uri")


def test_a_job_is_told_of_too_few_images_before_it_is_queued(root):
    touch(root, *(f"target/{i}.png" for i in range(8)), *(f"ti/{side}/{i}.png" for i in range(8) for side in ("rgb", "depth")))
    touch(root, "test/box/1.png")
    data = DataSpec.model_validate(
        {"target": {"uri": f"{root}/target"}, "pairs": {"uri": f"{root}/ti"}, "evaluation": {"uri": f"{root}/test"}}
    )
    assert layouts.check(data, CLASSES, [root]) == {"target": 8, "pairs": 8, "evaluation": 1}
    (root / "ti/rgb/0.png").unlink()
    (root / "ti/depth/0.png").unlink()
    assert refusal(layouts.check, data, CLASSES, [root]) == ("too_few_images", "/data/pairs/uri")
    (root / "target/0.png").unlink()
    assert refusal(layouts.check, data, CLASSES, [root]) == ("too_few_images", "/data/target/uri")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("https://host/a.zip?X-Amz-Signature=secret&b#inside", "https://host/a.zip?...#inside"),
        ("HTTPS://host/a.zip?secret", "HTTPS://host/a.zip?..."),
        ("https://host/a.zip", "https://host/a.zip"),
        ("s3://bucket/what%3F.zip", "s3://bucket/what%3F.zip"),
        ("file:///data/is?it", "file:///data/is?it"),
    ],
)
def test_a_signature_is_not_told_on(uri: str, told: str):
    assert shown(uri) == told
