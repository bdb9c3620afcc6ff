"""What a server is told: its models, where it listens, who may call it, and every limit. Importing this needs no torch."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plainformer.config.loading import LoadOptions
from plainformer.config.options import OptionSet, flag, number, one_of, option, specs, text, whole
from plainformer.config.values import check_texts
from plainformer.config.yaml import read_yaml
from plainformer.errors import InputError, PlainformerError, UsageError, did_you_mean, opt
from plainformer.plan.devices import parse_bytes
from plainformer.serve.engine.options import MEMORY, EngineOptions

KEY_VARIABLE = "PLAINFORMER_API_KEY"
WHERE, WHO, LIMITS = "Where and how it listens", "Who may call", "Limits of a request"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")


@dataclass(frozen=True)
class ModelEntry:
    """A model to serve: its name in the API, its reference, its task (None: what its files imply), and how it is loaded."""

    name: str
    ref: str
    task: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            what = f"{self.name!r} is not a name for a model"
            raise UsageError(what, "use letters, digits and . _ - : / @, at most 128 of them: chat=REF")


def _bytes(name: str, value: Any) -> None:
    parse_bytes(name, value)


def _origins(name: str, value: Any) -> None:
    check_texts(name, value)
    for one in value:
        if one != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", one):
            raise UsageError(
                f"{opt(name, one)} is not the origin of a page", f"for example {opt(name, 'https://app.example')}"
            )


def _size(default: str, help: str) -> Any:
    return option(default, help=help, group=LIMITS, check=_bytes, typed=str)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(OptionSet):
    """Options of `plainformer serve`, besides those of its engine and of loading."""

    # fmt: off
    host: str = option("127.0.0.1", help="Address to listen at; beyond this machine with a key alone.", group=WHERE, check=text())
    port: int = option(8000, help="Port; 0 takes a free one, which is printed.", group=WHERE, check=whole(0, 65535))
    drain_timeout: float = option(
        30.0, help="Seconds that running requests may go on after SIGTERM.", group=WHERE, check=number("[0, inf)"))
    log: str = option("text", help="How the log on stderr is written: text or json.", group=WHERE, check=one_of("text", "json"))
    no_explain: bool = option(False, help="Without /v1/explain and /v1/whatif.", group=WHERE, check=flag())
    defaults: str = option(
        "checkpoint", help="What holds where a request says nothing: the checkpoint's own settings and else sampling "
        "(checkpoint), or the likeliest token (plain).", group=WHERE, check=one_of("checkpoint", "plain"))
    unknown_fields: str = option(
        "error", help="A field of a request that is not known: error or ignore.", group=WHERE, check=one_of("error", "ignore"))

    api_key_file: str | None = option(
        None, help=f"File with the API key that requests must carry; or in {KEY_VARIABLE}.", group=WHO, check=text())
    metrics_key_file: str | None = option(None, help="File with a key for /metrics.", group=WHO, check=text())
    allowed_host: Sequence[str] = option(
        (), help="Name of this server besides localhost; repeat it.", group=WHO, check=check_texts, typed=list[str])
    cors_origin: Sequence[str] = option(
        (), help="Origin of a page that may call from a browser, or *; repeat it.", group=WHO, check=_origins, typed=list[str])

    max_body: str = _size("4MiB", "Size of a JSON body.")
    max_upload: str = _size("100MiB", "Size of a form with a recording.")
    max_schema: str = _size("64KiB", "Size of a JSON schema, grammar or regular expression.")
    max_depth: int = option(64, help="Levels that JSON may be nested.", group=LIMITS, check=whole(4, 100))
    max_messages: int = option(256, help="Messages of a chat.", group=LIMITS, check=whole(1))
    max_inputs: int = option(2048, help="Inputs of one request.", group=LIMITS, check=whole(1))
    max_input_tokens: int = option(300_000, help="Tokens of all inputs of a request for vectors.", group=LIMITS, check=whole(1))
    max_explain_tokens: int = option(512, help="Tokens of an input to explain: all else waits.", group=LIMITS, check=whole(1))
    max_score_tokens: int = option(2048, help="Tokens of a prompt with echo and logprobs.", group=LIMITS, check=whole(1))
    max_documents: int = option(1000, help="Documents of a request for a ranking.", group=LIMITS, check=whole(1))
    max_audio_seconds: int = option(1800, help="Length of a recording.", group=LIMITS, check=whole(1))
    template_seconds: float = option(1.0, help="Seconds that a chat template may run.", group=LIMITS, check=number("(0, 5]"))
    body_timeout: float = option(30.0, help="Seconds that a request may take to come.", group=LIMITS, check=number("(0, inf)"))
    keep_alive: int = option(5, help="Seconds that an idle connection stays open.", group=LIMITS, check=whole(1))
    max_connections: int = option(256, help="Connections at once.", group=LIMITS, check=whole(1))
    max_header: int = option(16384, help="Bytes of a request's headers.", group=LIMITS, check=whole(1024))
    kv_memory: str | None = option(
        None, help="Memory for keys and values: 2GB; default: a quarter of what is free.", group=MEMORY, check=_bytes, typed=str)
    # fmt: on

    def bytes_of(self, name: str) -> int:
        """Return an option that is a size, in bytes."""
        return parse_bytes(name, getattr(self, name))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def key(self) -> str | None:
        """Return the API key. Raises: InputError, where the file holds none; UsageError, where others could call without one."""
        found = _key_in("api_key_file", self.api_key_file) or os.environ.get(KEY_VARIABLE) or None
        if found is not None and not found.isascii():
            raise UsageError(f"the key in {KEY_VARIABLE} has characters beyond ASCII", "clients could not send it")
        if found is None and not self.is_loopback:
            what = f"{opt('host', self.host)} lets other machines call, and there is no API key"
            raise UsageError(what, f"give {opt('api_key_file', ...)} or {KEY_VARIABLE}, or listen at 127.0.0.1")
        return found

    def metrics_key(self) -> str | None:
        return _key_in("metrics_key_file", self.metrics_key_file)


def _key_in(name: str, path: str | None) -> str | None:
    if path is None:
        return None
    try:
        found = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"{opt(name, path)} cannot be read: {error}", "give a text file with the key in it") from None
    if len(found) < 8 or any(c.isspace() for c in found) or not found.isascii():
        raise InputError(
            f"{opt(name, path)} holds no key of 8 or more characters of ASCII",
            "for example: openssl rand -hex 24 > FILE",
        )
    return found


_ENGINE = tuple(specs(EngineOptions))


@dataclass(frozen=True)
class ServeConfig:
    """A server: its models, how they are loaded, and its options."""

    models: tuple[ModelEntry, ...]
    options: ServeOptions = field(default_factory=ServeOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    load: LoadOptions = field(default_factory=LoadOptions)

    @classmethod
    def of(cls, models: Iterable[ModelEntry], given: Mapping[str, Any], load: Mapping[str, Any]) -> ServeConfig:
        """Return the configuration of options by name, of server and engine together."""
        engine = {name: value for name, value in given.items() if name in _ENGINE}
        own = ServeOptions.of({name: value for name, value in given.items() if name not in _ENGINE}, "serve")
        if own.kv_memory is not None:
            engine["kv_memory_bytes"] = parse_bytes("kv_memory", own.kv_memory)
        return cls(tuple(models), own, EngineOptions.of(engine, "serve"), LoadOptions.of(load, "load"))

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.models]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"two models are called {name!r}", "give each a name of its own: NAME=REF")


def parse_models(given: Iterable[str], tasks: Iterable[str] = ()) -> tuple[ModelEntry, ...]:
    """Return models as the command line writes them: [NAME=]REF, and NAME=TASK for those that do another task than usual."""
    entries = []
    for one in given:
        name, _, ref = one.rpartition("=")
        entries.append(ModelEntry(name or _usual_name(ref), ref))
    asked = {}
    for one in tasks:
        name, equals, task = one.rpartition("=")
        if not equals and len(entries) != 1:
            raise UsageError(f"{opt('task', one)} does not say of which model", f"give {opt('task', f'NAME={one}')}")
        asked[name or entries[0].name] = task
    known = [entry.name for entry in entries]
    for name in asked:
        if name not in known:
            raise UsageError(f"{opt('task')} names {name!r}, which is not a model here", did_you_mean(name, known))
    return tuple(ModelEntry(entry.name, entry.ref, asked.get(entry.name)) for entry in entries)


def _usual_name(ref: str) -> str:
    """Return what a model is called without a name: a Hub id or bundled name as it is, of a path its last part."""
    if ref.startswith(("/", ".", "~")) or ref.endswith(".gguf") or os.path.exists(ref):
        ref = Path(ref).expanduser().resolve().name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._:/@-]", "-", ref).lstrip("._:/@-") or "model"


def read_serve_config(path: str | Path) -> tuple[tuple[ModelEntry, ...], dict[str, Any], dict[str, Any]]:
    """Return the models of a YAML file, its options of the server, and those of loading."""
    written = read_yaml(path)
    data = dict(written.data)
    models, load = data.pop("models", {}), data.pop("load", {})
    try:
        for name, value in (("models", models), ("load", load)):
            if not isinstance(value, Mapping):
                raise UsageError(f"{name} is not a mapping", f"write {name}: with a line for each below it")
        entries = tuple(_entry(str(name), value) for name, value in models.items())
        ServeConfig.of(entries, data, load)
    except PlainformerError as error:
        raise error.within(str(path)) from None
    return entries, data, dict(load)


def _entry(name: str, value: Any) -> ModelEntry:
    if isinstance(value, str):
        return ModelEntry(name, value)
    if not isinstance(value, Mapping) or not isinstance(value.get("ref"), str):
        raise UsageError(f"the model {name!r} has no ref", f"write {name}: REF, or {name}: {{ref: REF, task: TASK}}")
    rest = {key: one for key, one in value.items() if key not in ("ref", "task")}
    LoadOptions.of(rest, f"the model {name!r}")
    return ModelEntry(name, value["ref"], value.get("task"), rest)
