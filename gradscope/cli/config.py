"""Settings from `gradscope.toml` or `[tool.gradscope]`; flags and `GRADSCOPE_*` variables come before them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradscope.errors import ConfigError

Kind = type | tuple[type, ...]
NUMBER = (int, float)
TRAINING = ("analyze", "check")
KEYS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "steps": (int, ("analyze",)),
    "budget": ((str, *NUMBER), ("analyze", "recommend")),
    "quick": (bool, ("analyze",)),
    "seeds": (int, ("analyze",)),
    "seed": (int, TRAINING),
    "data": (str, TRAINING),
    "target": (str, TRAINING),
    "device": (str, TRAINING),
    "precision": (str, TRAINING),
    "batch_size": (int, TRAINING),
    "accumulate": (int, TRAINING),
    "total_steps": (int, TRAINING),
    "max_norm": (NUMBER, TRAINING),
    "fail_on": (str, ("analyze", "show")),
    "percentile": ((int, float, list), ("recommend",)),
    "framework": (str, ("recommend",)),
    "every": (int, ("record",)),
    "max_rows": (int, ("record",)),
}
ENVIRONMENT = {f"GRADSCOPE_{key.upper()}" for key in KEYS} | {"GRADSCOPE_DIR"}
RENAMED = {"target": "target_column", "percentile": "percentiles"}


def load_config(folder: Path | None = None) -> dict[str, Any]:
    """The settings of the folder: `gradscope.toml`, else `[tool.gradscope]` of `pyproject.toml`, else none.

    Raises:
        ConfigError: not TOML, an unknown key or variable, or a value of the wrong type.
    """
    here = folder or Path.cwd()
    _refuse_unknown((k for k in os.environ if k.startswith("GRADSCOPE_")), ENVIRONMENT, "environment")
    own, project = here / "gradscope.toml", here / "pyproject.toml"
    if own.is_file():
        return _checked(_read(own), str(own))
    if project.is_file():
        return _checked(_read(project).get("tool", {}).get("gradscope", {}), f"{project} [tool.gradscope]")
    return {}


def per_command(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same settings as defaults of each command that has them."""
    commands: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        for command in KEYS[key][1]:
            name = RENAMED.get(key, key)
            many = name == "percentiles" and not isinstance(value, list)
            commands.setdefault(command, {})[name] = [value] if many else value
    return commands


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from error


def _checked(table: dict[str, Any], where: str) -> dict[str, Any]:
    settings = {key.replace("-", "_"): value for key, value in table.items()}
    _refuse_unknown(settings, KEYS, where)
    for key, value in settings.items():
        kind = KEYS[key][0]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise ConfigError(f"{where}: {key} is {value!r}; write {wanted}")
    return settings


def _refuse_unknown(found: Iterable[str], known: Iterable[str], where: str) -> None:
    for key in found:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {key}{hint}")
