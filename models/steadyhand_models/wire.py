"""The wire: strict encoding of messages as msgpack, and the table of topics.

A message is a frozen dataclass from `messages`. On the wire it is the array [name, field, field, ...]; a decoder built
from the annotations checks count, type, range, dtype and shape before it allocates. Nothing is ever pickled.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack
import numpy as np

M = TypeVar("M")
MAX_MESSAGE_BYTES = 8 << 20
MAX_TEXT_CHARS = 65_536
MAX_ITEMS = 4_096
INT64 = 1 << 63


class WireError(ValueError):
    """Bytes that are not a valid message; the message says which field and why."""


@dataclass(frozen=True)
class Array:
    """What an array field must be: little-endian dtype and shape, where None leaves a length open up to `most`."""

    dtype: str
    shape: tuple[int | None, ...]
    most: int = MAX_ITEMS


def encode(message: Any) -> bytes:
    """One message as bytes. Raises WireError for what `decode` would refuse, so that a fault shows at its source."""
    codec = _codec(type(message))
    try:
        packed: bytes = msgpack.packb(codec.pack(message), use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"{codec.name}: cannot be encoded: {error}") from None
    return packed


def decode(data: bytes, *expected: type[M], max_bytes: int = MAX_MESSAGE_BYTES) -> M:
    """The message in `data`, which must be one of `expected`. Raises WireError."""
    if len(data) > max_bytes:
        raise WireError(f"message of {len(data)} bytes is over the limit of {max_bytes}")
    try:
        items = msgpack.unpackb(
            data, raw=False, strict_map_key=True, max_str_len=MAX_TEXT_CHARS, max_array_len=MAX_ITEMS, max_map_len=0
        )
    except Exception as error:  # msgpack raises a family of its own, ValueError and UnicodeDecodeError
        raise WireError(f"not msgpack: {type(error).__name__}: {error}") from None
    if not isinstance(items, list) or not items:
        raise WireError("a message is a non-empty array")
    for cls in expected:
        codec = _codec(cls)
        if codec.name == items[0]:
            return typing.cast(M, codec.unpack(items))
    raise WireError(f"expected {' or '.join(c.__name__ for c in expected)}, got {str(items[0])[:40]!r}")


@dataclass(frozen=True)
class _Field:
    name: str
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


class _Codec:
    """Encoder and decoder of one message class, built once from its annotations."""

    def __init__(self, cls: type) -> None:
        self.name = cls.__name__
        self.cls = cls
        hints = typing.get_type_hints(cls, include_extras=True)
        self.fields = [_Field(f.name, *_converters(hints[f.name])) for f in dataclasses.fields(cls)]
        # Fields with a default come last; records that were kept before there was such a field are still readable.
        self._least = sum(_is_required(f) for f in dataclasses.fields(cls))

    def pack(self, message: Any) -> list[Any]:
        return [self.name, *(f.pack(getattr(message, f.name)) for f in self.fields)]

    def unpack(self, items: Any) -> Any:
        if not isinstance(items, list) or not items or items[0] != self.name:
            raise WireError(f"{self.name}: expected {len(self.fields)} fields")
        if not self._least <= len(items) - 1 <= len(self.fields):
            raise WireError(f"{self.name}: expected {len(self.fields)} fields")
        values = []
        for field, item in zip(self.fields, items[1:]):
            try:
                values.append(field.unpack(item))
            except (ValueError, TypeError) as error:
                raise WireError(f"{self.name}.{field.name}: {error}") from None
        return self.cls(*values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


_CODECS: dict[type, _Codec] = {}


def _codec(cls: type) -> _Codec:
    if cls not in _CODECS:
        if not dataclasses.is_dataclass(cls):
            raise WireError(f"{cls.__name__} is not a message")
        _CODECS[cls] = _Codec(cls)
    return _CODECS[cls]


def _same(value: Any) -> Any:
    return value


def _converters(hint: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """(pack, unpack) of one annotation."""
    if hint in _SCALARS:
        return _same, _SCALARS[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _array_converters(arguments[1])
    if origin in (typing.Union, types.UnionType):
        return _optional_converters(next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        return _tuple_converters(arguments[0])
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return (lambda value: value.value), hint
    codec = _codec(hint)
    return codec.pack, codec.unpack


def _optional_converters(inner: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    pack, unpack = _converters(inner)
    return (
        lambda value: None if value is None else pack(value),
        lambda value: None if value is None else unpack(value),
    )


def _tuple_converters(inner: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    pack, unpack = _converters(inner)

    def unpack_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError("expected an array")
        return tuple(unpack(item) for item in value)

    return (lambda value: [pack(item) for item in value]), unpack_all


def _array_converters(spec: Array) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    dtype = np.dtype(spec.dtype)

    def pack(value: Any) -> Any:
        array = np.ascontiguousarray(value, dtype)
        _check_shape(array.shape, spec)
        return [list(array.shape), array.tobytes()]

    def unpack(value: Any) -> Any:
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], bytes):
            raise ValueError("expected an array's shape and bytes")
        shape = value[0]
        if not isinstance(shape, list) or not all(type(n) is int for n in shape):
            raise ValueError("array shape must be integers")
        _check_shape(tuple(shape), spec)
        if len(value[1]) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(value[1])} bytes do not fill {spec.dtype} {tuple(shape)}")
        return np.frombuffer(value[1], dtype).reshape(shape)

    return pack, unpack


def _check_shape(shape: tuple[int, ...], spec: Array) -> None:
    fits = len(shape) == len(spec.shape) and all(
        0 <= got <= spec.most if want is None else got == want for got, want in zip(shape, spec.shape)
    )
    if not fits:
        raise ValueError(f"shape {shape} is not {spec.shape}")


def _integer(value: Any) -> int:
    if type(value) is not int or not -INT64 <= value < INT64:
        raise ValueError(f"expected a 64-bit integer, got {value!r:.40}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (float, int) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r:.40}")
    return float(value)


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"expected true or false, got {value!r:.40}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"expected text, got {type(value).__name__}")
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise ValueError(f"expected bytes, got {type(value).__name__}")
    return value


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    int: _integer,
    float: _number,
    bool: _boolean,
    str: _text,
    bytes: _bytes,
}
