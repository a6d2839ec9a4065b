"""Pickles without code execution: read with inert stand-ins for a closed set of names, and written opcode by opcode.

torch.save, torch.distributed.checkpoint and Megatron-LM store their records as pickles. A pickle is a program that can
call anything it names, so names are never imported here. A name that these three use becomes a `Record`, which only
stores its arguments; any other name is refused. The opcodes are those of the Python documentation
(library/pickletools), protocol 2, as torch.save writes them.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from typing import Any, NoReturn, cast

from mconv.convert.errors import FormatError

_DISTRIBUTED = "torch.distributed.checkpoint"

_TORCH_NAMES = frozenset(
    {
        "Size", "device", "dtype",
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
        "float8_e4m3fn", "float8_e5m2",
        "DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "IntStorage", "ShortStorage",
        "CharStorage", "ByteStorage", "BoolStorage",
    }
)  # fmt: skip
_PATHS = frozenset({"Path", "PosixPath", "PurePosixPath"})
_ALLOWED: dict[str, frozenset[str]] = {
    "torch": _TORCH_NAMES,
    "torch._utils": frozenset({"_rebuild_tensor_v2", "_rebuild_parameter"}),
    "torch.storage": frozenset({"UntypedStorage", "TypedStorage"}),
    "torch.serialization": frozenset({"_get_layout"}),
    f"{_DISTRIBUTED}.metadata": frozenset(
        {
            "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata",
            "ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
        }
    ),
    # Up to torch 2.2.
    "torch.distributed._shard.sharded_tensor.metadata": frozenset({"TensorProperties", "MEM_FORMAT_ENCODING"}),
    f"{_DISTRIBUTED}.filesystem": frozenset({"_StorageInfo", "_StoragePrefix"}),
    f"{_DISTRIBUTED}.planner": frozenset(
        {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType", "BytesIOWriteData"}
    ),
    "argparse": frozenset({"Namespace"}),
    "types": frozenset({"SimpleNamespace"}),
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.dtypes": frozenset({"UInt32DType"}),
    "_codecs": frozenset({"encode"}),
    "io": frozenset({"BytesIO"}),
    "pathlib": _PATHS,
    # The name in Python 3.13.
    "pathlib._local": _PATHS,
    "signal": frozenset({"Signals"}),
    "collections": frozenset({"OrderedDict", "defaultdict"}),
    "builtins": frozenset({"set", "frozenset", "dict", "list", "slice", "complex"}),
}  # fmt: skip
"""Every name that a pickle may use, apart from those under `megatron.`: each becomes a Record, none is imported."""


class _Closed(type):
    """A class whose attributes a pickle cannot set."""

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise pickle.UnpicklingError(f"it sets {name} of {cls.__name__}")


class Record(metaclass=_Closed):
    """An object of a pickle: what it was made from, with which arguments, and the state it was given.

    Attributes:
        made_of: module and name separated by a space, as in the GLOBAL opcode: `torch Size`.
        arguments: what the name was called with.
        state: what BUILD gave it, usually a dict of attributes; None if there was none.
        items: what was stored in it by key, as in an OrderedDict.
    """

    made_of = ""
    arguments: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]
    __slots__ = ("arguments", "items", "state")

    def __new__(cls, *arguments: Any, **_: Any) -> Record:
        record = super().__new__(cls)
        record.arguments = arguments
        record.state = None
        record.items = {}
        return record

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def attribute(self, name: str) -> Any:
        """An attribute of the state, or None."""
        return self.state.get(name) if isinstance(self.state, dict) else None


def make_record(made_of: str, *arguments: Any, state: Any = None) -> Record:
    """A `Record` to be written."""
    record = _stand_in(made_of)(*arguments)
    record.state = state
    return record


def _stand_in(made_of: str) -> type[Record]:
    return cast("type[Record]", _Closed(made_of.split()[-1], (Record,), {"made_of": made_of, "__slots__": ()}))


def is_name(value: Any, made_of: str) -> bool:
    """Whether a value of a pickle is an object of this class or function: `torch Size`."""
    return isinstance(value, Record) and value.made_of == made_of


def global_name(value: Any) -> str:
    """The name, if a pickle holds a name itself (`torch bfloat16`) instead of an object; else empty."""
    return value.made_of if isinstance(value, type) and issubclass(value, Record) else ""


class _Reader(pickle._Unpickler):
    """The unpickler that is written in Python. The one in C is two or three times as fast, but a pickle of ten bytes
    can make it allocate all memory for its memo (LONG_BINPUT)."""

    def __init__(self, data: bytes, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(io.BytesIO(data))
        self._persistent = persistent
        self._stand_ins: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str) -> type[Record]:
        known = name in _ALLOWED.get(module, ())
        if not known and not (module.startswith("megatron.") and name.isidentifier()):
            raise _Refused(f"{module}.{name}")
        made_of = f"{module} {name}"
        if made_of not in self._stand_ins:
            self._stand_ins[made_of] = _stand_in(made_of)
        return self._stand_ins[made_of]

    def persistent_load(self, key: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to tensors, but has none")
        return self._persistent(key)


class _Refused(Exception):
    """A name outside the allow-list."""


def read_pickle(data: bytes, source: str, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The value of a pickle: builtins as themselves, everything else as Records.

    Args:
        data: the complete pickle.
        source: what it is, for messages.
        persistent: turns the persistent ids by which torch.save refers to storages into values.

    Raises:
        FormatError: it names something outside the allow-list, or is not a valid pickle.
    """
    try:
        return _Reader(data, persistent).load()
    except _Refused as refused:
        raise FormatError(
            f"{source}: the pickle uses {refused}, which no checkpoint needs",
            "do not use this checkpoint: another program that unpickles it may run its code",
        ) from refused
    except Exception as error:  # a damaged pickle can raise almost anything
        raise FormatError(f"{source}: not a readable pickle ({error})", "download the file again") from error


def write_pickle(value: Any) -> bytes:
    """A pickle of builtins and Records, protocol 2. Equal values give equal bytes."""
    out = [b"\x80\x02"]
    _emit(value, out)
    return b"".join([*out, b"."])


def _emit(value: Any, out: list[bytes]) -> None:
    if isinstance(value, Persistent):
        _emit(value.key, out)
        out.append(b"Q")
    elif isinstance(value, Record):
        _emit_record(value, out)
    elif global_name(value):
        out.append(b"c%b\n" % value.made_of.replace(" ", "\n").encode())
    elif value is None or value is True or value is False:
        out.append({None: b"N", True: b"\x88", False: b"\x89"}[value])
    elif isinstance(value, int):
        out.append(_integer(value))
    elif isinstance(value, float):
        out.append(b"G" + struct.pack(">d", value))
    elif isinstance(value, str):
        text = value.encode()
        out.append(b"X" + struct.pack("<I", len(text)) + text)
    elif isinstance(value, (list, tuple)):
        out.append(b"](" if isinstance(value, list) else b"(")
        for item in value:
            _emit(item, out)
        out.append(b"e" if isinstance(value, list) else b"t")
    elif isinstance(value, dict):
        out.append(b"}(")
        for key, item in value.items():
            _emit(key, out)
            _emit(item, out)
        out.append(b"u")
    else:
        raise TypeError(f"{type(value).__name__} cannot be written to these pickles")


class Persistent:
    """A persistent id to be written: torch.save's reference to a storage."""

    def __init__(self, key: tuple[Any, ...]) -> None:
        self.key = key


def named(made_of: str) -> type[Record]:
    """A name itself, to be written instead of an object: `torch bfloat16`."""
    return _stand_in(made_of)


def _emit_record(record: Record, out: list[bytes]) -> None:
    _emit(type(record), out)
    _emit(record.arguments, out)
    if record.state is None:
        out.append(b"R")
        return
    out.append(b"\x81")
    _emit(record.state, out)
    out.append(b"b")


def _integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits
