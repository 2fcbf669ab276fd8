"""PostgreSQL's connections with an end to each wait. Apart, since SQLite needs no psycopg."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import TransactionStatus


class BoundedConnection(psycopg.Connection[Any]):
    """What is not answered within answer_s is an OperationalError, and the end of the connection: its answer may still come, and would
    be taken for that to the next statement."""

    answer_s: float | None = None

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().wait(gen, *args, **({"timeout": self.answer_s} | kwargs))
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise


def connect(answer_s: float, *args: Any, **kwargs: Any) -> BoundedConnection:
    connection = BoundedConnection.connect(*args, **kwargs)
    connection.answer_s = answer_s
    return connection
