"""What the sets say of their images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import rendered_classes
from demo import scenes, splits


@pytest.mark.parametrize("index", [0, 7, 599])
def test_a_rendered_target_image_is_of_the_class_that_it_is_said_to_be(tmp_path, index):
    """The image as the split writes it is the one that rendering that class gives."""
    splits._write(tmp_path, 0, "target", index)
    (file,) = tmp_path.iterdir()
    classes = rendered_classes()
    assert len(classes) == 600 and set(classes.values()) == set(splits.CLASSES)
    said, other = classes[file.name], splits.CLASSES[(splits.CLASSES.index(classes[file.name]) + 1) % 6]
    rng = splits.generator
    as_said, as_other = (scenes.render(rng(0, "target", index), kind, splits.SIZE, ["depth"])["depth"] for kind in (said, other))
    written = np.asarray(Image.open(file))
    assert np.array_equal(written, as_said) and not np.array_equal(written, as_other)
