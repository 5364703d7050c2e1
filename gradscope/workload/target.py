"""From TARGET to an imported module: `path/model.py`, `path/model.py:NAME`, `pkg.module[:NAME]`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from gradscope.errors import SpecError
from gradscope.workload.calls import call_user

_read_before: set[str] = set()
"""Names of modules that were imported here, which a later read may replace."""


@dataclass(frozen=True)
class Spec:
    """A spec file as imported: its module, where each of its names was last bound, and which NAME was asked for."""

    target: str
    path: Path
    tree: ast.Module
    module: ModuleType
    chosen: str | None = None
    lines: dict[str, int] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """What the spec calls `name`, or None."""
        return getattr(self.module, name, None)

    def where(self, name: str | None = None) -> str:
        """`model.py:41`, or `model.py` for a name that has no line of its own."""
        line = self.lines.get(name or "")
        return f"{self.path.name}:{line}" if line else self.path.name


@dataclass(frozen=True)
class Source:
    """A spec file before it is imported."""

    target: str
    path: Path
    module: str
    root: Path
    text: str
    tree: ast.Module
    chosen: str | None

    def literal(self, name: str) -> Any:
        """The value of a top-level `name = literal`, or None."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                try:
                    return ast.literal_eval(node.value)
                except ValueError:
                    return None
        return None


def find_source(target: str) -> Source:
    """Find and parse the spec file that TARGET means; nothing of it is run.

    Raises:
        SpecError: no such file or module, not Python, a syntax error, or a name that cannot be imported.
    """
    place, chosen = _split(target)
    path, name, root = _file(place, target) if _is_path(place) else _module(place, target)
    text, tree = _parse(path)
    taken = name.partition(".")[0]
    if taken in sys.stdlib_module_names:
        raise SpecError(
            f"{path}: its name hides Python's own module `{taken}`; rename it, for example to my_{path.name}"
        )
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if name in sys.modules and name not in _read_before and loaded != str(path):
        raise SpecError(f"{path}: a module `{name}` is already loaded ({loaded or 'built in'}); rename it")
    return Source(target, path, name, root, text, tree, chosen)


def import_source(source: Source) -> Spec:
    """Run the spec file as the module it really is, with its root first on `sys.path`.

    Raises:
        UserCodeError: it raised; a nested ImportError is shown as it is.
        SpecError: it does not have the NAME that was asked for.
    """
    root = str(source.root)
    if sys.path[:1] != [root]:
        sys.path.insert(0, root)
    importlib.invalidate_caches()
    parent, _, leaf = source.module.rpartition(".")
    if parent:
        call_user(
            lambda: importlib.import_module(parent),
            f"importing {parent}, the package of {source.path.name},",
            source.path,
        )
    found = importlib.util.spec_from_file_location(source.module, source.path)
    assert found is not None
    module = importlib.util.module_from_spec(found)
    _read_before.add(source.module)
    sys.modules[source.module] = module
    code = compile(source.text, str(source.path), "exec")
    try:
        call_user(lambda: exec(code, module.__dict__), f"importing {source.path.name}", source.path)
    except BaseException:
        sys.modules.pop(source.module, None)
        raise
    if parent:
        setattr(sys.modules[parent], leaf, module)
    if source.chosen and not hasattr(module, source.chosen):
        raise SpecError(f"{source.path.name} has no `{source.chosen}`; it has {_names(module)}")
    return Spec(source.target, source.path, source.tree, module, source.chosen, _lines(source.tree))


def _split(target: str) -> tuple[str, str | None]:
    place, colon, name = target.rpartition(":")
    if not colon or not place or (len(place) == 1 and name[:1] in "\\/"):
        return target, None
    if not name.isidentifier():
        raise SpecError(f"{target}: `{name}` after the colon is not a name; write {place}:NAME")
    return place, name


def _is_path(place: str) -> bool:
    return (
        place.endswith(".py")
        or "/" in place
        or os.sep in place
        or (Path(place).exists() and not (Path(place) / "__init__.py").exists())
    )


def _file(place: str, target: str) -> tuple[Path, str, Path]:
    path = Path(place)
    if not path.exists():
        raise SpecError(f"{place}: no such file; `gradscope init` writes a spec file to start from")
    if path.is_dir() or path.suffix != ".py":
        kind = "a folder" if path.is_dir() else "not a Python file"
        raise SpecError(f"{place}: {kind}; give the .py file that has the model")
    path = path.resolve()
    parts, root = [path.stem] if path.stem != "__init__" else [], path.parent
    while (root / "__init__.py").exists() and root.name.isidentifier():
        parts, root = [root.name, *parts], root.parent
    if not path.stem.isidentifier():
        raise SpecError(
            f"{target}: `{path.stem}` is not a name that Python can import; rename it, without dashes or dots"
        )
    return path, ".".join(parts), root


def _module(place: str, target: str) -> tuple[Path, str, Path]:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    if not all(part.isidentifier() for part in place.split(".")):
        raise SpecError(f"{target}: neither a file nor the name of a module; write path/model.py or pkg.module")
    try:
        found = call_user(
            lambda: importlib.util.find_spec(place), f"looking for {place}", Path(place), keep=(ImportError, ValueError)
        )
    except (ImportError, ValueError) as error:
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "") in _prefixes(place)
        if not missing and not isinstance(error, ValueError):
            raise SpecError(f"{target}: {error}") from error
        found = None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        raise SpecError(
            f"{target}: no module `{place}` with a .py file here or on sys.path; a file is written path/model.py"
        )
    path = Path(found.origin)
    return path, place, path.parents[place.count(".") + (path.name == "__init__.py")]


def _prefixes(place: str) -> set[str]:
    parts = place.split(".")
    return {".".join(parts[: i + 1]) for i in range(len(parts))}


def _parse(path: Path) -> tuple[str, ast.Module]:
    try:
        text = importlib.util.decode_source(path.read_bytes())
        return text, ast.parse(text, str(path))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        shown = f"\n    {error.text.strip()}" if error.text and error.text.strip() else ""
        raise SpecError(f"{path.name}{line}: syntax error: {error.msg}{shown}") from error
    except ValueError as error:
        raise SpecError(f"{path}: not Python text: {error}") from error


def _names(module: ModuleType) -> str:
    names = [n for n, v in vars(module).items() if not n.startswith("_") and not isinstance(v, ModuleType)]
    return ", ".join(names[:12]) if names else "no names at all"


def _lines(tree: ast.Module) -> dict[str, int]:
    """Name → line where it was last bound at the top level, `if`, `with`, `try` and loops included."""
    lines: dict[str, int] = {}
    pending: list[ast.AST] = list(reversed(tree.body))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            lines[node.name] = node.lineno
        elif isinstance(node, ast.Import | ast.ImportFrom):
            lines.update({(a.asname or a.name).partition(".")[0]: node.lineno for a in node.names})
        elif not isinstance(node, ast.Lambda):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                lines[node.id] = node.lineno
            pending.extend(reversed(list(ast.iter_child_nodes(node))))
    return lines
