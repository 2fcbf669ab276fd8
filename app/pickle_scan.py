"""What a pickle would do, read off its operations: nothing is executed, no name is imported.

What passes is what torch's own reader takes with weights_only: its operations, and the names that tensors are rebuilt with.
"""

from __future__ import annotations

import io
import pickletools
import re
from dataclasses import dataclass

from app.errors import Problem

POINTER = "/source_model"
MAX_OPERATIONS = 2_000_000
_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""torch.serialization.MAGIC_NUMBER, 0x1950a86a20f9469cfc6c, as the first pickle of a legacy file has it after its protocol."""
_LEGACY_PICKLES = 5
"""Magic number, protocol version, system, the object itself, storage keys; then the storages' bytes."""

_OPERATIONS = frozenset(
    {
        "PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK", "TUPLE",
        "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
        "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINPERSID", "BINGET", "LONG_BINGET",
        "BINPUT", "LONG_BINPUT", "LONG1",
    }
)  # fmt: skip
_NAMES = frozenset(
    {
        "collections OrderedDict", "collections Counter", "_codecs encode",
        "torch Size", "torch Tensor", "torch device", "torch.nn.parameter Parameter",
        "torch.serialization _get_layout", "torch.storage TypedStorage", "torch.storage UntypedStorage",
        "torch.storage _UntypedStorage", "torch._tensor _rebuild_from_type_v2",
        *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("bytearray", "set", "complex")),
        *(
            f"torch._utils _rebuild_{what}"
            for what in (
                "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "sparse_tensor", "qtensor",
                "nested_tensor", "meta_tensor_no_storage", "wrapper_subclass", "device_tensor_from_numpy",
                "device_tensor_from_cpu_tensor",
            )
        ),
    }
)  # fmt: skip
_FAMILIES = re.compile(
    r"torch(\.cuda)?(\.sparse)? [A-Z][A-Za-z0-9]{1,15}(Storage|Tensor)"
    r"|torch ((u?int|q(u)?int|bits|float|bfloat|complex|bcomplex)\d[0-9a-z_]{0,20}|bool|per_(tensor|channel)_[a-z_]{1,30})"
)


@dataclass
class _Findings:
    """unsafe: the name it asks for, or how it would call one. strange: an operation that torch never writes.
    broken: why it could not be read to its end; cut: that the bytes ran out."""

    unsafe: str | None = None
    strange: str | None = None
    broken: str | None = None
    cut: bool = False


def state_dict(raw: bytes) -> None:
    """The pickle of a torch archive. Raises Problem unsafe_pickle, source_model_format, source_model_truncated."""
    _judge(_look(io.BytesIO(raw)), whole=True)


def legacy_file(raw: bytes, *, whole: bool) -> None:
    """The start of a file as torch.save wrote it before 1.6. whole: nothing of the file follows. Raises Problem."""
    stream = io.BytesIO(raw)
    found = []
    while len(found) < _LEGACY_PICKLES and not (found and found[-1].broken):
        found.append(_look(stream))
    if unsafe := next((one.unsafe for one in found if one.unsafe), None):
        raise _unsafe(unsafe)
    for one in found if raw.startswith(_MAGIC, 2) else found[:1]:
        _judge(one, whole)
    if not raw.startswith(_MAGIC, 2):
        raise Problem("source_model_format", "a pickle that torch.save did not write", pointer=POINTER)


def refuse_ancient(raw: bytes) -> None:
    """Pickles of protocols 0 and 1 have no first byte of their own. Raises Problem unsafe_pickle if it is one that calls."""
    found = _look(io.BytesIO(raw))
    if found.unsafe and not found.broken:
        raise _unsafe(found.unsafe)


def _look(stream: io.BytesIO) -> _Findings:
    """One pickle, from where the stream is to its STOP."""
    found = _Findings()
    texts: list[str | None] = [None, None]  # the last two values pushed, as far as they are texts
    memo: dict[int, str | None] = {}
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            if count == MAX_OPERATIONS:
                found.broken = f"a pickle of more than {MAX_OPERATIONS} operations"
                return found
            name = argument if operation.name in ("GLOBAL", "INST") else None
            if operation.name == "STACK_GLOBAL":
                name = " ".join(text or "?" for text in texts)
            elif operation.name == "MEMOIZE":
                memo[len(memo)] = texts[1]
            elif operation.name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = texts[1]
            elif operation.name in ("BINGET", "LONG_BINGET"):
                texts = [texts[1], memo.get(argument)]
            else:
                texts = [texts[1], argument if "UNICODE" in operation.name else None]
            if name is not None and name not in _NAMES and not _FAMILIES.fullmatch(name):
                found.unsafe = found.unsafe or name.replace(" ", ".")[:200]
            elif operation.name.startswith("EXT"):
                found.unsafe = found.unsafe or f"entry {argument} of the extension registry"
            if operation.name not in _OPERATIONS:
                found.strange = found.strange or operation.name
    except (ValueError, IndexError, OverflowError) as error:
        found.broken = str(error)
        found.cut = stream.tell() == stream.seek(0, io.SEEK_END)
    return found


def _judge(found: _Findings, whole: bool) -> None:
    if found.unsafe:
        raise _unsafe(found.unsafe)
    if found.cut and whole:
        raise Problem("source_model_truncated", "the file ends inside its pickle", pointer=POINTER)
    if found.broken:
        raise Problem("source_model_format", f"the pickle cannot be read: {found.broken[:200]}", pointer=POINTER)
    if found.strange:
        detail = f"the pickle has the operation {found.strange}, which torch.save does not write by itself"
        raise Problem("source_model_format", detail, pointer=POINTER)


def _unsafe(name: str) -> Problem:
    return Problem("unsafe_pickle", f"the pickle asks for {name!r}, which tensors do not need; it was not run", pointer=POINTER)
