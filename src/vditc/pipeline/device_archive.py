"""`vditc_device.pyz`: what a device runs of vditc, entry points and the modules that they import, in one file that needs no installing."""

from __future__ import annotations

import ast
import importlib.util
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ENTRIES = ("vditc.device.__main__", "vditc.runtimes.trt_worker")
# No syntax of later versions: an older Python must be able to say that it is too old.
_MAIN = """\
import sys

if sys.version_info < (3, 10):
    sys.exit("vditc: error: found Python %d.%d; wanted 3.10 or newer; set PYTHON to one, as PYTHON=python3.10" % sys.version_info[:2])

from vditc.device.__main__ import main

sys.exit(main())
"""


def archive() -> bytes:
    """The archive. Equal sources give equal bytes: names are sorted, nothing is compressed, no times."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as zipped:
        files = {name: path.read_bytes() for name, path in device_modules().items()}
        for name, data in sorted({"__main__.py": _MAIN.encode(), **files}.items()):
            zipped.writestr(_entry(name), data)
    return made.getvalue()


def device_modules() -> dict[str, Path]:
    """Name in the archive -> source, of the entries and everything of vditc that they import."""
    return imported_modules(ENTRIES, functions=True)


def imported_modules(entries: Iterable[str], *, functions: bool) -> dict[str, Path]:
    """Name in an archive -> source, of `entries` and everything of vditc that they import, packages included.

    `functions`: also what functions import when they are called.
    """
    found: dict[str, Path] = {}
    todo = list(entries)
    seen = set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a name that a module defines
            continue
        path = Path(spec.origin)
        package = spec.submodule_search_locations is not None
        found[f"{name.replace('.', '/')}{'/__init__' if package else ''}.py"] = path
        todo += [name.rpartition(".")[0]] if "." in name else []
        # What functions of the package itself import is for whoever calls them: no device does.
        todo += _imported(ast.parse(path.read_text(encoding="utf-8")), functions=functions and name != "vditc")
    return found


def _imported(tree: ast.AST, *, functions: bool) -> Iterator[str]:
    """Modules of vditc that are imported when the program runs, not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "vditc")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vditc":
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if _is_package(node.module))
        else:
            yield from _imported(node, functions=functions)


def _is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    return entry
