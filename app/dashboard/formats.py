"""Numbers and times as a page shows them."""

from __future__ import annotations

from datetime import datetime


def figure(value: float | None) -> str:
    """Four significant digits; a dash for nothing.

    >>> figure(0.123456), figure(None), figure(12)
    ('0.1235', '–', '12')
    """
    return "–" if value is None else f"{value:.4g}"


def share(value: float | None) -> str:
    """
    >>> share(0.7534), share(None)
    ('75.3 %', '–')
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """The two largest units.

    >>> duration(0.4), duration(75), duration(7380), duration(200_000)
    ('0 s', '1 min 15 s', '2 h 3 min', '2 d 7 h')
    """
    left, parts = max(0, int(seconds)), []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length or (unit == "s" and not parts):
            parts.append(f"{left // length} {unit}")
            left %= length
        elif parts:
            break
    return " ".join(parts[:2])


def ago(at: datetime, now: datetime) -> str:
    """The largest unit alone: a page that is read is seconds old already."""
    seconds = (now - at).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now" if seconds < 5 else f"{int(seconds)} s ago"


def size(bytes: int) -> str:
    """
    >>> size(12), size(44_780_312), size(5 * 2**30)
    ('12 B', '42.7 MiB', '5.0 GiB')
    """
    value = float(bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def instant(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
