"""Whose turn it is, on SQLite and on PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from app.database import EMBEDDED_TENANT, Database
from app.ids import new_id
from app.jobs import lifecycle, queue
from app.jobs.states import Status
from app.jobs.table import Job, Turn

LEASE = timedelta(seconds=30)


def add(db: Database, model_id: str, *names: str) -> None:
    """Queued one after the other, a second apart. A name is of the share, and of the priority where there is one: `a`, `b+5`."""
    with db.write() as session:
        now = db.now(session) - timedelta(minutes=5)
        for place, name in enumerate(names):
            share, _, priority = name.partition("+")
            at = now + timedelta(seconds=place)
            session.add(
                Job(
                    id=new_id("job"), tenant_id=EMBEDDED_TENANT, source_model_id=model_id, method="shot", name=f"{place} {name}",
                    request={}, request_digest="", status=Status.QUEUED, share=share, rank=-int(priority or 0),
                    created_at=at, queued_at=at, updated_at=at,
                )
            )  # fmt: skip


def claim(db: Database) -> Job | None:
    with db.write() as session:
        claimed = lifecycle.claim_next(session, "worker_a", lease=LEASE, now=db.now(session))
        return session.get(Job, claimed.job_id) if claimed else None


def finish(db: Database, job: Job) -> None:
    with db.write() as session:
        values = {"status": Status.SUCCEEDED, "lease_expires_at": None, "worker_id": None, "finished_at": db.now(session)}
        session.execute(sa.update(Job).where(Job.id == job.id).values(values))


def one_after_the_other(db: Database) -> list[str]:
    """By one worker."""
    order = []
    while (job := claim(db)) is not None:
        order.append(job.name)
        finish(db, job)
    return order


def test_of_one_share_the_higher_priority_is_first_then_the_longer_wait(database, model_id):
    add(database, model_id, "a", "a+5", "a", "a+5", "a+-3")
    assert one_after_the_other(database) == ["1 a+5", "3 a+5", "0 a", "2 a", "4 a+-3"]


def test_shares_take_turns_whatever_their_number_and_priority(database, model_id):
    add(database, model_id, *["a+100"] * 4, "b", "c", "b")
    order = one_after_the_other(database)
    assert [name.split()[1][0] for name in order] == ["a", "b", "c", "a", "b", "a", "a"]


def test_the_share_that_runs_least_is_next(database, model_id):
    """Three workers: a has two jobs running and b one, so the next is b's, though b had the last turn."""
    add(database, model_id, "a", "a", "a", "b", "b", "b")
    running = [claim(database) for _ in range(4)]
    assert [job.share for job in running] == ["a", "b", "a", "b"]
    finish(database, running[1])
    finish(database, running[3])
    assert claim(database).share == "b"


def test_a_share_that_may_not_be_claimed_yet_holds_nobody_up(database, model_id):
    add(database, model_id, "a", "b")
    with database.write() as session:
        later = database.now(session) + timedelta(hours=1)
        session.execute(sa.update(Job).where(Job.share == "a").values(not_before=later))
    assert one_after_the_other(database) == ["1 b"]


def test_turns_of_long_ago_are_forgotten(database, model_id):
    add(database, model_id, "a", "b")
    one_after_the_other(database)
    with database.write() as session:
        session.execute(sa.update(Turn).where(Turn.share == "a").values(at=database.now(session) - timedelta(days=2)))
        queue.forget_turns(session, database.now(session))
    with database.read() as session:
        assert session.scalars(sa.select(Turn.share)).all() == ["b"]


@pytest.mark.parametrize(
    ("labels", "label", "share"),
    [
        ({"team": "x"}, "team", "tenant_1/x"),
        ({"team": "x"}, "", "tenant_1"),
        ({}, "team", "tenant_1"),
        ({"team": ""}, "team", "tenant_1/"),
    ],
)
def test_a_share_is_the_tenant_or_one_value_of_its_label(labels, label, share):
    assert queue.share_of("tenant_1", labels, label) == share
