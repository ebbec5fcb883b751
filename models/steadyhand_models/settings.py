"""Settings: TOML files to frozen dataclasses, with every field overridable on the command line.

A settings class is a frozen dataclass whose bounds stand beside the defaults as `Annotated[float, Field(gt=0)]`.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import tyro

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
# `--flag` or `--flag false` rather than `--flag/--no-flag`, and choices by the values that files use.
_STYLE = (tyro.conf.FlagConversionOff, tyro.conf.EnumChoicesFromValues)


class SettingsError(Exception):
    """A settings file or value that cannot be used; the message names the fix."""


def load(cls: type[T], path: Path | None) -> T:
    """Read a TOML file into `cls`; without a path, the defaults. Raises SettingsError on any unknown or bad value."""
    if path is None:
        return validate(cls, {}, "defaults")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    return validate(cls, data, str(path))


def validate(cls: type[T], data: dict[str, Any], where: str) -> T:
    """Build `cls` from plain data, checking names, types and bounds."""
    _refuse_unknown_keys(cls, data, where, prefix="")
    try:
        return pydantic.TypeAdapter(cls).validate_python(data)
    except pydantic.ValidationError as error:
        problems = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise SettingsError(f"{where}:\n" + "\n".join(problems)) from None


def parse_command_line(cls: type[T], argv: Sequence[str], prog: str, description: str) -> T:
    """Settings of one command: defaults, then `--config FILE`, then every other option, then the bounds again."""
    path, rest = _take_config_option(list(argv))
    default = load(cls, path)
    text = f"{description}\n\n--config FILE reads settings from a TOML file first; the options below override it."
    words = _spell_switches(rest, _switches(cls))
    chosen = tyro.cli(cls, prog=prog, description=text, args=words, default=default, config=_STYLE)
    return validate(cls, dataclasses.asdict(chosen), "command line")  # type: ignore[call-overload]


def to_toml(settings: Any) -> str:
    """The effective settings as TOML text, so that a run can be repeated from its folder."""
    lines: list[str] = []
    _emit_table(dataclasses.asdict(settings), "", lines)
    return "\n".join(lines).strip() + "\n"


def _emit_table(table: dict[str, Any], prefix: str, lines: list[str]) -> None:
    for key, value in table.items():
        if value is not None and not isinstance(value, dict):
            lines.append(f"{key} = {_toml_value(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            lines.append(f"\n[{prefix}{key}]")
            _emit_table(value, f"{prefix}{key}.", lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + "}"
    text = str(getattr(value, "value", value))
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _take_config_option(argv: list[str]) -> tuple[Path | None, list[str]]:
    for i, word in enumerate(argv):
        if word == "--config":
            if i + 1 == len(argv):
                raise SettingsError("--config needs a file name, for example --config lift.toml")
            return Path(argv[i + 1]), argv[:i] + argv[i + 2 :]
        if word.startswith("--config="):
            return Path(word.removeprefix("--config=")), argv[:i] + argv[i + 1 :]
    return None, argv


def _switches(cls: Any, prefix: str = "--") -> set[str]:
    """Every option of `cls` that is a yes or no."""
    found: set[str] = set()
    for name, hint in typing.get_type_hints(cls).items():
        if hint is bool:
            found.add(f"{prefix}{name}".replace("_", "-"))
        elif dataclasses.is_dataclass(hint):
            found |= _switches(hint, f"{prefix}{name}.")
    return found


def _spell_switches(argv: Sequence[str], switches: set[str]) -> list[str]:
    """`--yes` and `--yes true` as the `--yes True` that the parser expects."""
    words: list[str] = []
    for before, word, after in zip(["", *argv], argv, [*argv[1:], ""]):
        is_value = before.replace("_", "-") in switches and word.lower() in ("true", "false")
        words.append(word.capitalize() if is_value else word)
        if word.replace("_", "-") in switches and after.lower() not in ("true", "false"):
            words.append("True")
    return words


def _refuse_unknown_keys(cls: Any, data: dict[str, Any], where: str, prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    for key, value in data.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean '{prefix}{near[0]}'?" if near else f"; known here: {', '.join(hints)}"
            raise SettingsError(f"{where}: unknown setting '{prefix}{key}'{hint}")
        inner = _dataclass_in(hints[key])
        if inner is None:
            continue
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, dict):
                _refuse_unknown_keys(inner, item, where, f"{prefix}{key}.")


def _dataclass_in(hint: Any) -> Any | None:
    if dataclasses.is_dataclass(hint):
        return hint
    for argument in typing.get_args(hint):
        found = _dataclass_in(argument)
        if found is not None:
            return found
    return None
