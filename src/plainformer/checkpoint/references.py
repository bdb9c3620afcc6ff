"""A reference to a model (a folder, a .gguf file, a bundled name, a Hub name) → files on this machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from plainformer.checkpoint.adapters import is_adapter
from plainformer.checkpoint.bundled import BUNDLED, bundled_path, near_bundled
from plainformer.checkpoint.formats.parts import whole_models
from plainformer.checkpoint.formats.source import some
from plainformer.checkpoint.hub import REPOSITORY_NAME, HubRepository, Part
from plainformer.checkpoint.run_folders import is_series, model_of
from plainformer.checkpoint.small_files import MODULES, holds_tokenizer, not_a_transformer
from plainformer.errors import CheckpointError, UsageError, did_you_mean, opt

_URL = re.compile(r"https?://[^/]+/([^/]+/[^/?#]+)")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Files:
    """Where a model's files are.

    Attributes:
        ref: the reference as it was given.
        path: the folder with config.json and its companions, or the GGUF file.
        revision: the Hub's commit, for a model that came from there; None for local ones.
    """

    ref: str
    path: Path
    revision: str | None = None


def resolve(
    ref: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    part: Part = "model",
) -> Files:
    """Turn a reference into local files, downloading them when it names a Hub repository.

    Args:
        ref: a folder with config.json; the folder of a run, which means its best model; a `.gguf` file; a folder that
            holds one; a bundled name (see `BUNDLED`); a Hub
            name, "owner/name" or "name" ("hf://owner/name" where a local folder has the same name); one GGUF file of a
            Hub repository, "owner/name:file.gguf". What exists locally comes first.
        revision: a branch, tag or commit of the Hub repository; default its main branch.
        token: a Hub token; default HF_TOKEN, or the one stored by `hf auth login`.
        cache_dir: where downloads are kept; default HF_HOME's.
        part: "tokenizer" downloads no weights, except for a GGUF file, which is one with its tokenizer. "config" downloads
            config.json alone.

    Raises:
        UsageError: the reference cannot be a path or a name, or `revision` or `token` is given for local files.
        CheckpointError: a local path does not exist or holds no model.
        HubError: no network and not in the cache, no such repository or revision, no permission, nothing usable in it.
    """
    text = os.fspath(ref) if isinstance(ref, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UsageError(f"the model reference {ref!r} is neither a text nor a path", "give a str or a Path")
    _check_text(text)
    try:
        local = _resolve_local(text, is_path=not isinstance(ref, str), part=part)
    except OSError as error:  # a folder that may not be read, a name longer than a file's can be
        raise CheckpointError(
            f"{text[:200]!r} cannot be read: {error.strerror}", "check its name and its permissions"
        ) from None
    if local is not None:
        given = (("revision", revision, opt("revision", revision)), ("token", token, f"a Hub {opt('token')}"))
        for name, value, said in given:
            if value is not None:
                raise UsageError(
                    f"{said} does not apply to {text!r}, which is on this machine", f"leave out {opt(name, ...)}"
                )
        return Files(text, local)
    return Files(text, *HubRepository(text, revision, token, cache_dir, part).fetch())


def _check_text(ref: str) -> None:
    if not ref.strip():
        raise UsageError("an empty model reference", "give a folder, a .gguf file, or a Hub name such as 'gpt2'")
    if any(ord(character) < 32 for character in ref) or ref != ref.strip():
        raise UsageError(f"the model reference {ref!r} has spaces around it or control characters", "remove them")
    url = _URL.match(ref)
    if url or ("://" in ref and not ref.startswith("hf://")):
        raise UsageError(f"{ref!r} is a web address", f"give the Hub name, {url.group(1) if url else 'owner/name'!r}")


def _resolve_local(ref: str, *, is_path: bool, part: Part = "model") -> Path | None:
    """Return the folder or GGUF file that `ref` is on this machine; None when it can only be a Hub name."""
    if ref.startswith("hf://"):
        return None
    path = Path(ref).expanduser()
    if path.is_dir():
        return _resolve_folder(ref, path, part)
    if path.exists():
        return _resolve_file(ref, path)
    if not is_path and ref.lower() in BUNDLED:
        return bundled_path(ref.lower())
    if is_path or _looks_like_path(ref, path):
        raise CheckpointError(f"{ref!r}: there is no such file or folder", _near_paths(ref, path))
    return None


def _looks_like_path(ref: str, path: Path) -> bool:
    if ref.startswith((os.sep, "/", "./", "../", "~", ".\\", "..\\")) or ref in (".", "..") or "\\" in ref:
        return True
    if _WINDOWS_DRIVE.match(ref) or path.is_absolute():
        return True
    if "/" not in ref:
        return ref.endswith(".gguf") and ":" not in ref
    # "models/bert" where ./models exists: a misspelt path is far likelier than an owner of that name.
    return path.parent.is_dir()


def _near_paths(ref: str, path: Path) -> str:
    """Return a hint: siblings with a similar name, at the first part of the path that does not exist."""
    parts, parent = list(path.parts), Path()
    while parts and (parent / parts[0]).exists():
        parent /= parts.pop(0)
    try:
        siblings = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        siblings = []
    near = did_you_mean(parts[0] if parts else path.name, siblings, few=False) or near_bundled(path.name)
    where = f"{str(parent)!r} exists, {parts[0]!r} in it does not" if parts and str(parent) != "." else ""
    hub = f"for the Hub repository write 'hf://{ref}'" if REPOSITORY_NAME.fullmatch(ref) and "/" in ref else ""
    return "; ".join(part for part in (where, near, hub) if part) or "check the path"


def _resolve_folder(ref: str, folder: Path, part: Part) -> Path:
    if (folder / "config.json").is_file() or is_adapter(folder):
        return folder
    if part == "tokenizer" and holds_tokenizer(entry.name for entry in folder.iterdir()):
        return folder
    if (model := model_of(folder)) is not None:
        return model
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    ggufs = whole_models(name for name in names if name.endswith(".gguf"))
    if len(ggufs) == 1:
        return folder / ggufs[0]
    raise CheckpointError(f"{ref!r} holds no config.json; it holds {some(names)}", _folder_hint(ref, folder, ggufs))


def _folder_hint(ref: str, folder: Path, ggufs: list[str]) -> str:
    if is_series(folder):
        return f"it has a model for each fold: `load` gives all of them as one, {str(folder / 'fold-1')!r} is the first"
    if ggufs:
        return f"several GGUF files: give one of them, such as {str(folder / ggufs[0])!r}"
    if (folder / MODULES).is_file() and (hint := not_a_transformer(folder / MODULES)):
        return hint
    below = sorted([*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")])
    if below:
        return f"did you mean {str(below[0].parent)!r}?"
    hint = "give the folder that a model was saved to or downloaded into"
    return f"{hint}; for the Hub repository write 'hf://{ref}'" if REPOSITORY_NAME.fullmatch(ref) else hint


def _resolve_file(ref: str, path: Path) -> Path:
    if path.suffix.lower() == ".gguf":
        return path
    holder = path.parent if (path.parent / "config.json").is_file() else None
    raise CheckpointError(
        f"{ref!r} is a file, and only a .gguf file is a whole model",
        f"give its folder, {str(holder)!r}" if holder else "give the folder that also holds its config.json",
    )
