"""Solvers know nothing of the rest of the package, nor of torch: they are fed with plain data."""

import ast
from pathlib import Path

import memcompile.solvers

FOLDER = Path(memcompile.solvers.__file__).parent


def test_solvers_import_no_torch_and_nothing_of_ours_but_themselves() -> None:
    imported: set[str] = set()
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
    ours = {name for name in imported if name.split(".")[0] == "memcompile"}
    assert "torch" not in {name.split(".")[0] for name in imported}
    assert {".".join(name.split(".")[:2]) for name in ours} == {"memcompile.solvers"}
