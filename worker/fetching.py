"""What a job's data references lead to beyond this machine, brought into its cache before the job's process starts: that
one has no network and no credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app import remote
from app.blobs import Blobs
from app.datasets.table import Dataset
from app.layouts import SETS
from app.remote import Pin
from app.settings import Settings
from app.spec import DataSpec, Fetched
from worker.cache import Cache, Held
from worker.sources import GoingOn, InBucket, OverHttps, Source, Uploaded


def fetch(sources: Mapping[str, Source], cache: Cache, going_on: GoingOn) -> dict[str, Held]:
    """By what each reference has as its base. Where one fails, none is held. Raises what Cache.hold raises."""
    held: dict[str, Held] = {}
    try:
        for base, source in sources.items():
            beside = sum(one.size for one in held.values())
            held[base] = cache.hold(source.key, lambda room, source=source: source.fill(room, going_on), going_on, beside)
        going_on()
    except BaseException:
        release(held)
        raise
    return held


def remote_uris(data: DataSpec) -> dict[str, str]:
    """The references that are to be fetched, with a pointer to each."""
    named = {name: reference.uri for name in SETS if (reference := getattr(data, name)) is not None}
    return {uri: f"/data/{name}/uri" for name, uri in reversed(named.items()) if remote.is_remote(uri)}


def sources(
    job_id: str, uris: Mapping[str, str], pins: Sequence[Pin], datasets: Mapping[str, Dataset], blobs: Blobs, settings: Settings
) -> dict[str, Source]:
    """By base: references into one are fetched once. pins: the job's. datasets: the job's, by id."""
    found: dict[str, Source] = {}
    pin_of = {pin.uri: pin for pin in pins}
    for uri, pointer in uris.items():
        led = remote.parse(uri, pointer)
        if led.base not in found:
            if led.scheme == "dataset":
                found[led.base] = Uploaded(datasets[led.place], blobs, settings, pointer)
            elif led.scheme == "s3":
                found[led.base] = InBucket(led, pin_of[led.base], settings, pointer)
            else:
                found[led.base] = OverHttps(led, pin_of[led.base], settings, job_id, pointer)
    return found


def release(held: Mapping[str, Held]) -> None:
    for one in held.values():
        one.close()


def placed(held: Mapping[str, Held], uris: Mapping[str, str]) -> dict[str, Fetched]:
    """uris: of the job's references, with a pointer to each. Raises Problem reference_missing."""
    found = {}
    for uri, pointer in uris.items():
        led = remote.parse(uri, pointer)
        one = held[led.base]
        found[uri] = Fetched(path=str(one.folder / led.inner), version=one.version)
    return found
