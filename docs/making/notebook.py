"""Runs a notebook's code from its first cell to its last and writes what it shows into it, as Jupyter would.

    python docs/making/notebook.py examples/quickstart.ipynb

A cell's last expression is shown as a PNG where it can be one (Pillow's pictures can) and as text elsewhere; what is
printed comes before it. No server, no kernel, no package beyond Python's own.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with its outputs made again; what a cell raises is raised."""
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = _run("".join(cell["source"]), f"cell {count}", names, count)
            cell = cell | {"execution_count": count, "outputs": outputs}
        cells.append(cell)
    return notebook | {"cells": cells}


def _run(source: str, where: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """One cell's outputs."""
    tree = ast.parse(source, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        value = eval(compile(ast.Expression(last.value), where, "eval"), names) if isinstance(last, ast.Expr) else None
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": [_plain(value)]}
        if hasattr(value, "_repr_png_"):
            data = {"image/png": base64.b64encode(value._repr_png_()).decode()} | data
        result = {"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"}
        outputs.append(result)
    return outputs


def _plain(value: Any) -> str:
    """Its repr, without the address in memory that differs each time."""
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text else text


def main(file: Path) -> None:
    """Write the notebook's outputs into its file."""
    made = executed(json.loads(file.read_text("utf-8")))
    file.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
