from __future__ import annotations

import pytest
import torch

from worker.adaptation import checkpoint


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {"tensor": torch.randn(3, 4), "nested": {"list": [1, 2.5, None, "word"]}, "flag": True}
    assert checkpoint.load(tmp_path) is None
    checkpoint.save(tmp_path, state)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert torch.equal(loaded.pop("tensor"), state.pop("tensor"))
    assert loaded == state


def test_a_save_that_fails_leaves_the_former_one_whole(tmp_path):
    class Unsavable:
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    checkpoint.save(tmp_path, {"step": 1})
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, {"tensor": torch.zeros(1000), "bad": Unsavable()})
    assert checkpoint.load(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_a_checkpoint_that_carries_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, tmp_path / checkpoint.NAME)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "ran").exists()
