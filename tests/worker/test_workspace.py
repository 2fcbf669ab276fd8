"""What a new attempt finds, and what an old one cannot spoil."""

from __future__ import annotations

from worker import workspace


def test_the_next_attempt_finds_the_newest_checkpoint_and_the_cache(tmp_path):
    first = workspace.prepare(tmp_path, "job_1", 1)
    (first.out / "cache").mkdir()
    (first.out / "cache/target.npy").write_bytes(b"images")
    (first.out / "cache/.target.9.aside").write_bytes(b"half")
    (first.out / "checkpoint.pt").write_bytes(b"step 3")
    second = workspace.prepare(tmp_path, "job_1", 2)
    (second.out / "checkpoint.pt").unlink()
    (second.out / "checkpoint.pt").write_bytes(b"step 7")
    workspace.prepare(tmp_path, "job_1", 3)
    fifth = workspace.prepare(tmp_path, "job_1", 5)
    assert (fifth.out / "checkpoint.pt").read_bytes() == b"step 7"
    assert [file.name for file in (fifth.out / "cache").iterdir()] == ["target.npy"]
    assert (fifth.out / "cache/target.npy").samefile(first.out / "cache/target.npy"), "linked, not copied"
    assert not (fifth.out / "artifacts").exists()


def test_a_stale_attempt_that_saves_again_changes_nothing_of_the_next(tmp_path):
    stale = workspace.prepare(tmp_path, "job_1", 1)
    (stale.out / "checkpoint.pt").write_bytes(b"old")
    current = workspace.prepare(tmp_path, "job_1", 2)
    aside = stale.out / "checkpoint.pt.partial"
    aside.write_bytes(b"stale")
    aside.replace(stale.out / "checkpoint.pt")
    assert (current.out / "checkpoint.pt").read_bytes() == b"old"


def test_finished_artifacts_are_carried_and_half_linked_ones_are_not(tmp_path):
    first = workspace.prepare(tmp_path, "job_1", 1)
    (first.out / "artifacts").mkdir()
    (first.out / "artifacts/model.json").write_text("{}")
    second = workspace.prepare(tmp_path, "job_1", 2)
    assert (second.out / "artifacts/model.json").exists()
    # as if the supervisor of attempt 3 had been killed while it linked
    third = workspace.prepare(tmp_path, "job_2", 1)
    (third.out / "artifacts.linking").mkdir()
    fourth = workspace.prepare(tmp_path, "job_2", 2)
    assert not (fourth.out / "artifacts").exists()


def test_folders_are_for_their_owner_alone_and_go_as_a_whole(tmp_path):
    made = workspace.prepare(tmp_path, "job_1", 1)
    (tmp_path / "not-a-job").mkdir()
    assert made.folder.stat().st_mode & 0o077 == 0
    assert list(workspace.jobs_here(tmp_path)) == ["job_1"]
    workspace.remove(tmp_path, "job_1", 1)
    workspace.remove(tmp_path, "job_1", 1)
    assert list(workspace.jobs_here(tmp_path)) == []
    assert list(workspace.jobs_here(tmp_path / "nowhere")) == []


def test_an_attempt_that_ends_leaves_a_later_one_at_work(tmp_path):
    """A client may have had the job tried again between its end and the removal."""
    workspace.prepare(tmp_path, "job_1", 1)
    later = workspace.prepare(tmp_path, "job_1", 2)
    workspace.remove(tmp_path, "job_1", 1)
    assert [path.name for path in (tmp_path / "job_1").iterdir()] == ["attempt-2"] and later.out.is_dir()


def test_what_an_attempt_only_carried_is_not_its_own(tmp_path):
    """Else a checkpoint that another machine wrote meanwhile, and that lies in the blob store, would count as older."""
    first = workspace.prepare(tmp_path, "job_1", 1)
    first.checkpoint.write_bytes(b"step 100")
    workspace.prepare(tmp_path, "job_1", 3)
    assert workspace.newest_checkpoint(tmp_path, "job_1", 4) == 1
    own = workspace.prepare(tmp_path, "job_1", 5)
    own.checkpoint.unlink()
    own.checkpoint.write_bytes(b"step 300")
    assert workspace.newest_checkpoint(tmp_path, "job_1", 6) == 5
    assert workspace.newest_checkpoint(tmp_path, "job_2", 6) == 0


def test_folders_that_a_restored_database_knows_nothing_of_are_begun_anew(tmp_path):
    """Its attempts count again from where the backup was made."""
    stale = workspace.prepare(tmp_path, "job_1", 2)
    stale.checkpoint.write_bytes(b"of a future that never was")
    before = workspace.prepare(tmp_path, "job_1", 1)
    before.checkpoint.write_bytes(b"step 10")
    again = workspace.prepare(tmp_path, "job_1", 2)
    assert again.checkpoint.read_bytes() == b"step 10"


def test_what_a_killed_removal_left_goes_with_the_next(tmp_path):
    made = workspace.prepare(tmp_path, "job_1", 1)
    made.folder.rename(made.folder.with_name("gone-1"))
    workspace.remove(tmp_path, "job_1", 1)
    assert list(workspace.jobs_here(tmp_path)) == []


def test_of_what_a_full_disk_holds_the_newest_checkpoint_stays_and_the_next_attempt_carries_it(tmp_path):
    first = workspace.prepare(tmp_path, "job_1", 1)
    (first.out / "checkpoint.pt").write_bytes(b"1")
    (first.out / "cache").mkdir()
    (first.out / "cache/target.npy").write_bytes(bytes(1000))
    first.spec.write_text("{}")
    workspace.prepare(tmp_path, "job_1", 2)  # carries it, and has written none of its own
    later = workspace.prepare(tmp_path, "job_1", 4)
    workspace.shed(tmp_path, "job_1", 3)
    assert [path for path in (tmp_path / "job_1").glob("attempt-[123]/**/*") if path.is_file()] == [first.checkpoint]
    assert (later.out / "cache/target.npy").exists(), "what is at work is left alone"
    workspace.remove(tmp_path, "job_1", 4)

    workspace.shed(tmp_path, "job_2", 1)
    workspace.prepare(tmp_path, "job_2", 1)
    workspace.shed(tmp_path, "job_2", 1)
    assert list(workspace.jobs_here(tmp_path)) == [], "without a checkpoint nothing stays"
