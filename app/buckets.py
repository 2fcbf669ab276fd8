"""Data in buckets that the operator has opened, by boto3: what a reference leads to now, and the bytes of just that.

Each object is read by its ETag: one that was replaced in between is an error, never a mixture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError, PartialCredentialsError

from app import archives
from app.archives import Names
from app.blobs import BlobsAwayError
from app.blobs.s3 import CONNECT_S, READ_S, TRIES, S3Reading, open_client
from app.errors import Problem
from app.listing import Listing
from app.remote import Pin, Remote
from app.settings import Settings

_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "404", "NotFound"})
_CHANGED = frozenset({"PreconditionFailed", "412"})


@dataclass(frozen=True)
class Object:
    """name: below the folder, with slashes. etag: with its quotes, as the store writes it."""

    name: str
    key: str
    size: int
    etag: str


class Buckets:
    def __init__(self, settings: Settings) -> None:
        self.open = [one.removeprefix("s3://").rstrip("/").partition("/") for one in settings.data_buckets]
        self.endpoint = settings.data_s3_endpoint_url or settings.s3_endpoint_url or None
        self.most = settings.max_unpacked_bytes
        self.most_packed = settings.max_dataset_bytes
        self._client: Any = None

    def look(self, led: Remote, pointer: str) -> tuple[list[Object], Pin]:
        """The objects of a folder that a layout may read, by name, or the one archive; and what they are pinned by. Raises
        Problem reference_forbidden, reference_missing, reference_unreadable, reference_away, reference_too_large,
        archive_unsafe, archive_bomb."""
        self._require_open(led, pointer)
        if led.is_archive:
            found, limit = [self._archive(led, pointer)], self.most_packed
            version = f"etag:{found[0].etag}"
        else:
            found, limit = self._folder(led, pointer), self.most
            version = f"etags-sha256:{_digest(found)}"
        size = sum(one.size for one in found)
        if size > limit:
            raise Problem("reference_too_large", f"{led.base} has {size} bytes; at most {limit} are fetched", pointer=pointer)
        return found, Pin(uri=led.base, version=version, size=size)

    def listing(self, led: Remote, objects: list[Object], pointer: str) -> Listing:
        """Of a folder without shards. Its lists and CSV files are read when they are asked for."""
        by_name = {one.name: one for one in objects}

        def read(name: str, limit: int) -> bytes:
            one = by_name[name]
            with closing(self.reading(led, one, 0, min(one.size, limit), pointer)) as pieces, self.told(one.key, pointer):
                return b"".join(pieces)

        return Listing(dict.fromkeys(by_name), read)

    def reading(self, led: Remote, one: Object, start: int, end: int, pointer: str) -> S3Reading:
        """Its bytes from start to before end, which go on where a connection broke. To be used within told()."""
        return S3Reading(lambda first: self._open(led.place, one, first, end, pointer), start, end)

    def _open(self, bucket: str, one: Object, start: int, end: int, pointer: str) -> Any:
        with self.told(one.key, pointer):
            answer = self.client.get_object(Bucket=bucket, Key=one.key, IfMatch=one.etag, Range=f"bytes={start}-{end - 1}")
        if answer["ETag"] != one.etag or answer["ContentLength"] != end - start:
            answer["Body"].close()
            raise changed(f"{one.key!r} was replaced", pointer)
        return answer["Body"]

    @property
    def client(self) -> Any:
        if self._client is None:
            self._client = open_client(boto3.session.Session(), self.endpoint, CONNECT_S, READ_S, TRIES)
        return self._client

    def _require_open(self, led: Remote, pointer: str) -> None:
        for bucket, _, prefix in self.open:
            if led.place == bucket and (not prefix or f"{led.path}/".startswith(f"{prefix}/")):
                return
        raise Problem("reference_forbidden", f"{led.base} does not lie below a bucket that may be read", pointer=pointer)

    def _archive(self, led: Remote, pointer: str) -> Object:
        with self.told(led.path, pointer):
            head = self.client.head_object(Bucket=led.place, Key=led.path)
        return Object(led.path.rpartition("/")[2], led.path, head["ContentLength"], head["ETag"])

    def _folder(self, led: Remote, pointer: str) -> list[Object]:
        prefix = f"{led.path}/" if led.path else ""
        names, found = Names(led.base, pointer), []
        with self.told(prefix, pointer):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=led.place, Prefix=prefix):
                for one in page.get("Contents", ()):
                    name = one["Key"].removeprefix(prefix)
                    plain = names.add(name, folder=name.endswith("/") or not name)
                    if (archives.is_read(plain) or archives.is_shard(plain)) and not name.endswith("/"):
                        found.append(Object(plain, one["Key"], one["Size"], one["ETag"]))
        if not found:
            raise Problem("reference_missing", f"no image lies below {led.base}", pointer=pointer)
        return sorted(found, key=lambda one: one.name)

    @contextmanager
    def told(self, key: str, pointer: str) -> Iterator[None]:
        """What a store says, as a Problem: reference_missing, reference_changed, reference_unreadable, reference_away."""
        try:
            yield
        except ClientError as error:
            code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code in _MISSING:
                raise Problem(
                    "reference_missing", f"{key!r} is not in the bucket, or the bucket is not there", pointer=pointer
                ) from error
            if code in _CHANGED:
                raise changed(f"{key!r} was replaced", pointer) from error
            if status < 500 and status != 429:
                raise Problem("reference_unreadable", f"{key!r}: the store refuses: {code}", pointer=pointer) from error
            raise Problem("reference_away", f"{key!r}: the store answers {code}", pointer=pointer) from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise Problem("reference_unreadable", f"{key!r}: this service has no credentials for it", pointer=pointer) from error
        except (BotoCoreError, BlobsAwayError) as error:
            raise Problem(
                "reference_away", f"{key!r}: the store does not answer: {type(error).__name__}", pointer=pointer
            ) from error


def changed(detail: str, pointer: str) -> Problem:
    return Problem("reference_changed", f"{detail} after the job was accepted", pointer=pointer)


def _digest(objects: list[Object]) -> str:
    digest = hashlib.sha256()
    for one in objects:
        digest.update(f"{one.name}\0{one.size}\0{one.etag}\n".encode())
    return digest.hexdigest()
