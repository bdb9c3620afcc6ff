"""`plainformer serve [NAME=]REF...`: models over HTTP."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import Parameter

from plainformer.cli.flags import Flags
from plainformer.cli.options import restored
from plainformer.config.loading import LoadOptions
from plainformer.config.options import specs
from plainformer.errors import UsageError, opt
from plainformer.serve.config import ModelEntry, ServeConfig, ServeOptions, parse_models, read_serve_config
from plainformer.serve.engine.options import EngineOptions


class ServerFlags(Flags, kinds=[ServeOptions, EngineOptions], without=("kv_memory_bytes",), defaults=True):
    """The options of the server and of its engine."""


class ServedLoadFlags(Flags, kinds=[LoadOptions], group="How models are loaded", without=("tp", "pp")):
    """How checkpoints are loaded."""


def serve(
    *models: Annotated[str, Parameter(help="[NAME=]REF of a model, several of any kind; none: the bundled ones.")],
    task: Annotated[
        list[str] | None, Parameter(help="NAME=TASK: a model's task, if not the usual one; repeat it.")
    ] = None,
    config: Annotated[
        str | None, Parameter(help="YAML file with models, options and load; flags come after it.")
    ] = None,
    flags: ServerFlags = ServerFlags(),  # noqa: B008
    load: ServedLoadFlags = ServedLoadFlags(),  # noqa: B008
) -> None:
    """Serve models over HTTP, as OpenAI's clients speak it, and every task of the library.

    Example: plainformer serve chat=smollm2-135m-instruct vectors=all-minilm-l6-v2

    Requests run together and are answered as they would be alone.

    SIGTERM lets running requests end; /openapi.json lists the routes.
    """
    made = configured([restored(one) for one in models], task or [], config, flags.options(), load.options())
    from plainformer.serve import run

    code = run(made, lambda line: print(line, flush=True))
    if code:
        sys.exit(code)


def configured(
    models: list[str], tasks: list[str], path: str | None, given: dict[str, Any], load: dict[str, Any]
) -> ServeConfig:
    """Return what a command line and its YAML file ask for: what is typed comes before the file."""
    entries: tuple[ModelEntry, ...] = ()
    options: dict[str, Any] = {}
    loading: dict[str, Any] = {}
    if path is not None:
        entries, options, loading = read_serve_config(path)
    typed = parse_models(models, tasks) if models else ()
    if tasks and not models:
        raise UsageError(f"{opt('task')} has no effect without a model", "name the models: NAME=REF")
    names = {entry.name for entry in typed}
    entries = (*(entry for entry in entries if entry.name not in names), *typed)
    return ServeConfig.of(entries or bundled(), {**options, **given}, {**loading, **load})


def bundled() -> tuple[ModelEntry, ...]:
    """Return the bundled models that are installed."""
    from plainformer.checkpoint.bundled import BUNDLED, is_installed

    return tuple(ModelEntry(name, name) for name in BUNDLED if is_installed(name))


__all__ = ["bundled", "configured", "serve", "specs"]
