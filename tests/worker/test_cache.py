"""The cache of what was fetched: whole or not there, shared by processes, within its bytes, and never from under a job."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import Problem
from worker.beside import NotYetError
from worker.cache import Cache, Held, Room

fork = multiprocessing.get_context("spawn")
BLOCK = 4096
"""Sizes are in blocks of a disk."""


def of(size: int, content: bytes = b"x", files: int = 1) -> Callable[[Room], str]:
    def fill(room: Room) -> str:
        room.need(size * BLOCK)
        for number in range(files):
            (room.files / f"{number}.png").write_bytes(content * (size * BLOCK // files))
        return f"v-{content.decode()}"

    return fill


def never(_: Room) -> str:
    raise AssertionError("it is there")


def hold(cache: Cache, key: str, fill: Callable[[Room], str] = never, beside: int = 0) -> Held:
    return cache.hold(key, fill, lambda: None, beside)


def kept(cache: Cache) -> set[str]:
    return {one.name for one in cache.entries.iterdir()}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1000 * BLOCK)


def test_an_entry_is_filled_once_and_says_what_it_is(cache: Cache):
    first = hold(cache, "a", of(10))
    second = hold(cache, "a")
    assert (second.folder / "0.png").read_bytes() == b"x" * 10 * BLOCK
    assert (first.folder, first.size, first.version) == (second.folder, 10 * BLOCK, "v-x")
    first.close()
    second.close()
    first.close()
    assert list(cache.aside.iterdir()) == []


def test_a_fill_that_fails_leaves_nothing_and_can_be_tried_again(cache: Cache):
    def fails(room: Room) -> str:
        (room.files / "half.png").write_bytes(b"half")
        room.scratch.write_bytes(b"archive")
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        hold(cache, "a", fails)
    assert kept(cache) == set() and list(cache.aside.iterdir()) == []
    hold(cache, "a", of(10)).close()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{")])
def test_an_entry_that_is_damaged_is_filled_anew(cache: Cache, damage: Callable[[Path], object]):
    hold(cache, "a", of(10)).close()
    damage(cache.entries / "a" / "meta.json")
    again = hold(cache, "a", of(10, b"y"))
    assert (again.folder / "0.png").read_bytes() == b"y" * 10 * BLOCK
    again.close()


def test_the_least_recently_used_goes_first(cache: Cache):
    for number, key in enumerate("abc"):
        hold(cache, key, of(300)).close()
        os.utime(cache.locks / key, (number, number))
    held = hold(cache, "a")
    held.close()
    os.utime(cache.locks / "a", (10, 10))
    hold(cache, "d", of(300)).close()
    assert kept(cache) == {"a", "c", "d"}
    hold(cache, "e", of(700)).close()
    assert kept(cache) == {"e", "d"}, "no more than is needed"
    assert {one.name for one in cache.locks.iterdir()} == kept(cache)


def test_what_is_in_use_stays_and_the_job_waits_for_it(cache: Cache):
    held = hold(cache, "a", of(600))
    with pytest.raises(NotYetError, match=f"{200 * BLOCK} bytes"):
        hold(cache, "b", of(600))
    assert kept(cache) == {"a"} and (held.folder / "0.png").exists()
    held.close()
    hold(cache, "b", of(600)).close()
    assert kept(cache) == {"b"}


def test_many_small_files_count_as_what_they_take_on_the_disk(cache: Cache):
    held = hold(cache, "a", of(1, files=600))
    with pytest.raises(NotYetError):
        hold(cache, "b", of(1, files=600))
    assert kept(cache) == {"a"} and list(cache.aside.iterdir()) == []
    held.close()
    hold(cache, "b", of(1, files=600)).close()
    assert kept(cache) == {"b"}
    with pytest.raises(Problem) as caught:
        hold(cache, "c", of(1, files=1100))
    assert caught.value.code == "cache_full"


def test_what_would_not_make_enough_room_stays(cache: Cache):
    in_use = hold(cache, "a", of(600))
    hold(cache, "b", of(200)).close()
    with pytest.raises(NotYetError, match=f"{100 * BLOCK} bytes"):
        hold(cache, "c", of(500))
    assert kept(cache) == {"a", "b"}
    hold(cache, "b").close()
    in_use.close()


def _with_few_files(folder: Path, most: int, work: Callable[[Cache], object]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    work(Cache(folder, most))


def _hold_all_there_is(cache: Cache) -> None:
    hold(cache, "large", of(1000)).close()


@pytest.mark.parametrize(("most", "work", "left"), [(1000, _hold_all_there_is, {"large"}), (0, Cache.tidy, set())])
def test_more_entries_go_at_once_than_a_process_may_open_files(
    cache: Cache, most: int, work: Callable[[Cache], object], left: set[str]
):
    for number in range(90):
        hold(cache, str(number), of(1)).close()
    other = fork.Process(target=_with_few_files, args=(cache.folder, most * BLOCK, work))
    other.start()
    other.join(60)
    assert other.exitcode == 0 and kept(cache) == left
    assert {one.name for one in cache.locks.iterdir()} == left
    other.close()


@pytest.fixture
def taken(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Held]]:
    """From its call on, `a` is held once it is known that what is idle makes enough room."""

    def prepare() -> list[Held]:
        held: list[Held] = []
        evict = cache._evict

        def late(entries: dict[str, int], excess: int, gone: list[Path]) -> int:
            if not held:
                held.append(hold(cache, "a"))
            return evict(entries, excess, gone)

        monkeypatch.setattr(cache, "_evict", late)
        return held

    return prepare


def test_another_goes_for_one_that_a_job_takes_at_the_last_moment(cache: Cache, taken: Callable[[], list[Held]]):
    for number, key in enumerate("ab"):
        hold(cache, key, of(400)).close()
        os.utime(cache.locks / key, (number, number))
    held = taken()
    hold(cache, "c", of(500)).close()
    assert kept(cache) == {"a", "c"} and (held[0].folder / "0.png").exists()
    held[0].close()


def test_there_is_no_room_where_a_job_takes_all_that_is_idle_at_the_last_moment(cache: Cache, taken: Callable[[], list[Held]]):
    hold(cache, "a", of(600)).close()
    held = taken()
    with pytest.raises(NotYetError, match=f"{200 * BLOCK} bytes"):
        hold(cache, "b", of(600))
    assert kept(cache) == {"a"} and list(cache.aside.iterdir()) == []
    held[0].close()


def test_what_waits_for_room_is_not_fetched_again_before_there_is_as_much_as_it_lacked(cache: Cache):
    fetched = []

    def growing(room: Room) -> str:
        fetched.append(1)
        for size in (300, 600):
            room.grow(size * BLOCK)
            (room.files / "image.png").write_bytes(b"x" * size * BLOCK)
        return "v"

    others = [hold(cache, key, of(size)) for key, size in (("a", 500), ("b", 150))]
    for _ in range(3):
        with pytest.raises(NotYetError):
            hold(cache, "c", growing)
    assert len(fetched) == 1
    others[1].close()
    with pytest.raises(NotYetError, match=f"{100 * BLOCK} bytes"):
        hold(cache, "c", growing)
    others[0].close()
    hold(cache, "c", growing).close()
    assert len(fetched) == 2


def test_what_a_job_needs_beyond_the_whole_cache_fails_it(cache: Cache):
    with pytest.raises(Problem) as caught:
        hold(cache, "a", of(1001))
    assert caught.value.code == "cache_full" and caught.value.context == {"needed": 1001 * BLOCK, "limit": 1000 * BLOCK}
    held = hold(cache, "b", of(600))
    with pytest.raises(Problem) as caught:
        hold(cache, "a", of(500), beside=held.size)
    assert caught.value.code == "cache_full", "waiting for itself would be in vain"
    held.close()


def test_room_that_another_is_filling_counts(cache: Cache):
    def nested(room: Room) -> str:
        room.need(600 * BLOCK)
        with pytest.raises(NotYetError):
            hold(cache, "b", of(500))
        hold(cache, "c", of(400)).close()
        return "v"

    hold(cache, "a", nested).close()


def _fill_slowly(folder: Path, started: object, most: int) -> None:
    def fill(room: Room) -> str:
        room.need(500 * BLOCK)
        (room.files / "image.png").write_bytes(b"x" * 100)
        started.set()  # type: ignore[attr-defined]
        time.sleep(60)
        return "v"

    Cache(folder, most).hold("a", fill, lambda: None)


def _hold_until_killed(folder: Path, started: object, most: int) -> None:
    with_it = Cache(folder, most).hold("a", of(500), lambda: None)
    started.set()  # type: ignore[attr-defined]
    time.sleep(60)
    with_it.close()


@pytest.mark.parametrize("doing", [_fill_slowly, _hold_until_killed])
def test_a_worker_that_is_killed_leaves_nothing_that_is_in_the_way(cache: Cache, doing: Callable[..., None]):
    started = fork.Event()
    other = fork.Process(target=doing, args=(cache.folder, started, cache.most))
    other.start()
    assert started.wait(60)
    with pytest.raises(NotYetError):
        hold(cache, "b", of(600))
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    hold(cache, "b", of(600)).close()
    assert kept(cache) == {"b"} and list(cache.aside.iterdir()) == []
    other.close()


def _fill_counted(folder: Path, key: str, tally: Path) -> None:
    def fill(room: Room) -> str:
        room.need(10)
        with tally.open("a") as file:
            file.write(key)
        time.sleep(0.1)
        (room.files / "image.png").write_bytes(b"x" * 10)
        return "v"

    held = Cache(folder, 1000 * BLOCK).hold(key, fill, lambda: None)
    assert (held.folder / "image.png").read_bytes() == b"x" * 10
    held.close()


def test_several_workers_fetch_one_thing_once(cache: Cache, tmp_path: Path):
    tally = tmp_path / "tally"
    others = [fork.Process(target=_fill_counted, args=(cache.folder, key, tally)) for key in "aabb"]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
        other.close()
    assert sorted(tally.read_text()) == ["a", "b"]


def test_waiting_for_another_ends_when_it_is_told_to(cache: Cache):
    begun, go = threading.Event(), threading.Event()

    def slow(room: Room) -> str:
        begun.set()
        assert go.wait(30)
        return "v"

    thread = threading.Thread(target=lambda: hold(cache, "a", slow).close())
    thread.start()
    assert begun.wait(30)
    asked = []

    def give_up() -> None:
        asked.append(1)
        if len(asked) > 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        cache.hold("a", never, give_up)
    go.set()
    thread.join(30)


def test_tidying_keeps_to_a_cap_that_was_lowered_and_to_what_is_in_use(cache: Cache):
    for number, key in enumerate("abc"):
        hold(cache, key, of(300)).close()
        os.utime(cache.locks / key, (number, number))
    held = hold(cache, "a")
    (cache.aside / "half deleted").mkdir()
    Cache(cache.folder, 500 * BLOCK).tidy()
    assert kept(cache) == {"a"} and list(cache.aside.iterdir()) == []
    held.close()
    Cache(cache.folder / "nothing", 500).tidy()
