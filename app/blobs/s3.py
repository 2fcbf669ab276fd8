"""Blobs in a bucket of an S3-compatible store, by boto3. Credentials and region are found as boto3 finds them.

An upload lies on this machine's disk until it is whole; what then goes up appears under its key at once or never.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from app.blobs import staging
from app.blobs.staging import ABANDONED_S, BlobsAwayError, Staged, checked, full_disk_told, sha256_of

CONNECT_S, READ_S, TRIES = 5.0, 30.0, 3
"""For one try at a call, silence included; botocore waits a little longer before each further one."""
CHECK_CONNECT_S, CHECK_READ_S = 2.0, 3.0
PART_BYTES = 8 * 2**20
"""A larger file goes up, and comes down, in parts of this size, four at a time."""
CONNECTIONS = 64
_READ = 1 << 18
_AWAY = (ClientError, BotoCoreError, Boto3Error)
_WRONG_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})


class S3Blobs:
    def __init__(self, bucket: str, prefix: str, endpoint: str | None, aside: Path, *, read_s: float = READ_S) -> None:
        self.bucket, self.prefix, self.endpoint, self.aside = bucket, f"{prefix}/" if prefix else "", endpoint, aside
        session = boto3.session.Session()
        self._client = open_client(session, endpoint, CONNECT_S, read_s, TRIES)
        self._checking = open_client(session, endpoint, CHECK_CONNECT_S, min(CHECK_READ_S, read_s), 1)
        self._transfer = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)

    def __repr__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix} at {self.endpoint or 'AWS'}"

    def prepare(self) -> None:
        self.aside.mkdir(parents=True, exist_ok=True)
        staging.clear(self.aside, ABANDONED_S)

    def check(self) -> None:
        with self._told():
            self._checking.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
            # The right to write is shown by an upload that is called off: no object comes and goes at every look.
            place = {"Bucket": self.bucket, "Key": f"{self.prefix}check"}
            begun = self._checking.create_multipart_upload(**place)
            self._checking.abort_multipart_upload(**place, UploadId=begun["UploadId"])

    def stage(self) -> Staged:
        return staging.stage(self.aside)

    def keep(self, staged: Staged, key: str) -> None:
        with full_disk_told():
            staged.file.flush()
        self._upload(staged.path, key)

    def put(self, source: Path, key: str) -> tuple[int, str]:
        size, sha256 = source.stat().st_size, sha256_of(source)
        self._upload(source, key)
        return size, sha256

    def adopt(self, source: Path, key: str) -> None:
        self._upload(source, key)

    def _upload(self, source: Path, key: str) -> None:
        """In parts where it is large; one that fails is called off, so that no part of it stays."""
        with self._told():
            self._client.upload_file(str(source), self.bucket, self._name(key), Config=self._transfer)

    def read(self, key: str, start: int, end: int) -> S3Reading:
        return S3Reading(lambda first: self._open(key, first, end), start, end)

    def _open(self, key: str, start: int, end: int) -> Any:
        with self._told(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key), Range=f"bytes={start}-{end - 1}")
        if answer["ContentLength"] != end - start:
            answer["Body"].close()
            raise BlobsAwayError(f"{self!r} gives {answer['ContentLength']} bytes of {key}, where {end - start} were asked for")
        return answer["Body"]

    def local(self, key: str, place: Path) -> Path:
        with self._told(key):
            self._client.download_file(self.bucket, self._name(key), str(place), Config=self._transfer)
        return place

    def delete(self, key: str) -> None:
        with self._told():
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def keys(self, prefix: str) -> list[str]:
        checked(prefix.rstrip("/"))
        return sorted(key for key, _ in self._all(prefix))

    def keys_older_than(self, seconds: float) -> Iterator[str]:
        yield from (key for key, age_s in self._all("") if age_s > seconds)

    def _all(self, prefix: str) -> Iterator[tuple[str, float]]:
        """(key, its age in seconds): by one clock, the store's, which dates its answers."""
        with self._told():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            for page in pages:
                now = _date(page)
                for found in page.get("Contents", ()):
                    yield found["Key"].removeprefix(self.prefix), (now - found["LastModified"]).total_seconds()

    def clear_aside(self, older_than_s: float) -> int:
        """Files on this machine's disk, and uploads in parts that nobody will finish."""
        cleared = staging.clear(self.aside, older_than_s)
        with self._told():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
            for page in pages:
                before = _date(page) - timedelta(seconds=older_than_s)
                for begun in page.get("Uploads", ()):
                    if self._last_heard(begun) < before:
                        self._client.abort_multipart_upload(Bucket=self.bucket, Key=begun["Key"], UploadId=begun["UploadId"])
                        cleared += 1
        return cleared

    def _last_heard(self, begun: Mapping[str, Any]) -> datetime:
        """When an upload in parts began. SeaweedFS does not say: then when its last part came, or, where none did and it takes no
        room, never too long ago."""
        if "Initiated" in begun:
            return begun["Initiated"]
        try:
            parts = self._client.list_parts(Bucket=self.bucket, Key=begun["Key"], UploadId=begun["UploadId"]).get("Parts", ())
        except self._client.exceptions.NoSuchUpload:  # it has just ended
            parts = ()
        return max((part["LastModified"] for part in parts), default=datetime.max.replace(tzinfo=UTC))

    def _name(self, key: str) -> str:
        return self.prefix + checked(key)

    @contextmanager
    def _told(self, key: str | None = None) -> Iterator[None]:
        """Raises FileNotFoundError where the store says that there is no `key`, BlobsAwayError for all else that it says."""
        try:
            yield
        except _AWAY as error:
            cause = error.__context__ if isinstance(error, Boto3Error) and error.__context__ is not None else error
            if key is not None and isinstance(cause, ClientError) and cause.response["Error"]["Code"] in _MISSING:
                raise FileNotFoundError(errno.ENOENT, f"no such blob in {self!r}", key) from error
            raise BlobsAwayError(self._words(cause)) from error

    def _words(self, error: BaseException) -> str:
        if isinstance(error, ClientError):
            said, status = error.response["Error"], error.response["ResponseMetadata"]["HTTPStatusCode"]
            if said["Code"] == "NoSuchBucket":
                return (
                    f"there is no bucket {self.bucket!r} at {self.endpoint or 'AWS'}: make it, or correct MODALBRIDGE_BLOBS_URL"
                )
            if said["Code"] in _WRONG_CLOCK:
                return f"{self!r} refuses the time of this request ({said['Code']}): set this machine's clock, by NTP"
            if status in (401, 403):
                return f"{self!r} refuses these credentials ({said['Code']}): look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do"
            return f"{self!r} answers {status} {said['Code']}: {said.get('Message', '')}"
        if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
            return f"{error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give boto3 credentials in another of its ways"
        if isinstance(error, HTTPClientError | ConnectionError):
            return f"nothing answers for {self!r}: {error}"
        return f"{self!r}: {error}"


class S3Reading:
    """Goes on at the byte where a connection broke; raises BlobsAwayError where that helps no more."""

    def __init__(self, open_at: Callable[[int], Any], start: int, end: int) -> None:
        self._open_at, self._at, self._end = open_at, start, end
        self._body = open_at(start) if start < end else None

    def __iter__(self) -> Iterator[bytes]:
        broken = 0
        while self._at < self._end:
            try:
                self._body = self._body or self._open_at(self._at)
                piece = self._body.read(min(_READ, self._end - self._at))
            except BotoCoreError as error:
                broken += 1
                self.close()
                if broken == TRIES:
                    raise BlobsAwayError(f"a download broke off {TRIES} times at one byte: {error}") from error
                time.sleep(0.1 * broken)
                continue
            broken = 0
            self._at += len(piece)
            yield piece

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def open_client(session: boto3.session.Session, endpoint: str | None, connect_s: float, read_s: float, tries: int) -> Any:
    """As every client of ours: bounded in time and tries."""
    config = Config(
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": tries},
        max_pool_connections=CONNECTIONS,
        # Checksums of boto3's newer kind are more than several compatible stores know.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", endpoint_url=endpoint, config=config)


def _date(answer: dict[str, Any]) -> datetime:
    """When the store gave this answer, by its own clock."""
    text = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(text) if text else datetime.now(UTC)
