"""Prefixed, sortable ids: `job_` + a UUIDv7 in 26 characters of Crockford's base 32, so that id order is time order."""

from __future__ import annotations

from uuid_utils import uuid7

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    number = uuid7().int
    return prefix + "_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
