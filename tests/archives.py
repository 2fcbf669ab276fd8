"""Archives, well-formed and hostile, made in memory."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

FORMATS = ("zip", "tar", "tar.gz")


def made(format: str, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> bytes:
    """An archive of files, in this order."""
    pairs = files.items() if isinstance(files, Mapping) else files
    out = io.BytesIO()
    if format == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in pairs:
                archive.writestr(zip_info(name), content)
        return out.getvalue()
    with tarfile.open(fileobj=out, mode="w:gz" if format == "tar.gz" else "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in pairs:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def zip_info(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    """As zip on Linux writes it; a name is taken as it is."""
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    info.create_system = 3
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], gz: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if gz else "w") as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


def of_folder(format: str, folder: Path) -> bytes:
    """Everything below it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return made(format, {path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
