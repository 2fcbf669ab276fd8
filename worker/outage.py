"""What is away for an attempt is logged once a minute, not at each of its tries; and that it is back."""

from __future__ import annotations

import time

import structlog

AGAIN_S = 60.0
log = structlog.get_logger()


class Outage:
    """away, back: what the log says."""

    def __init__(self, away: str, back: str) -> None:
        self.away, self.back = away, back
        self._began_at: float | None = None
        self._said_at = 0.0

    def goes_on(self, error: Exception) -> None:
        now = time.monotonic()
        began_at = now if self._began_at is None else self._began_at
        if self._began_at is None or now - self._said_at >= AGAIN_S:
            log.warning(self.away, error=str(error)[:300], for_s=round(now - began_at))
            self._said_at = now
        self._began_at = began_at

    def over(self) -> None:
        """It may be that it never began."""
        if self._began_at is not None:
            log.info(self.back, after_s=round(time.monotonic() - self._began_at, 1))
        self._began_at = None
