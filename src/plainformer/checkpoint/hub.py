"""Downloads from the Hub: only what a model needs, kept in the usual cache.

The configuration, the tokenizer's or processor's files, and one set of weights (safetensors if there is one, else PyTorch's
`.bin`) are fetched. `huggingface_hub` does the transfer, so that HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean
what they mean elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from glob import escape
from pathlib import Path
from typing import Any, Literal

from plainformer.checkpoint.adapters import ADAPTER_CONFIG, ADAPTER_FILES, is_adapter
from plainformer.checkpoint.bundled import near_bundled
from plainformer.checkpoint.formats.parts import part_names, whole_models
from plainformer.checkpoint.formats.source import WEIGHT_FILES, choose_weights, find_weights, some
from plainformer.checkpoint.small_files import (
    MODULES,
    SMALL_FILES,
    holds_tokenizer,
    missing_module_file,
    not_a_transformer,
    pick_module_files,
    pick_small_files,
)
from plainformer.errors import CheckpointError, HubError, UsageError, did_you_mean, opt

Part = Literal["model", "tokenizer", "config"]
Found = tuple[Path, str | None]  # a folder or a GGUF file, and the commit that it is of

_log = logging.getLogger(__name__)

REPOSITORY_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?(?:/[\w](?:[\w.-]{0,94}[\w])?)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DISK_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENOTDIR, errno.EDQUOT}


def _parse_hub_name(ref: str) -> tuple[str, str | None]:
    """Split "owner/name:file.gguf" or "owner/name/file.gguf" into the repository and the file."""
    name = ref.removeprefix("hf://")
    repo, colon, file = name.partition(":")
    if not colon and name.count("/") >= 2 and name.endswith(".gguf"):
        owner, short, file = name.split("/", 2)
        repo = f"{owner}/{short}"
    if not REPOSITORY_NAME.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise UsageError(
            f"{ref!r} is neither a local path nor a Hub name",
            "a Hub name is 'owner/name' or 'name', of letters, digits, '-', '_' and '.'; a local path must exist",
        )
    if file or colon:
        parts = file.split("/")
        if not file.endswith(".gguf") or any(part in ("", ".", "..") for part in parts) or "\\" in file:
            raise UsageError(f"{ref!r}: {file!r} is not a .gguf file's name", f"write {repo + ':file.gguf'!r}")
    return repo, file or None


class HubRepository:
    """One Hub repository at one revision; see `references.resolve` for what its arguments are."""

    def __init__(
        self,
        ref: str,
        revision: str | None,
        token: str | None,
        cache_dir: str | os.PathLike[str] | None,
        part: Part,
    ) -> None:
        self.ref, self.revision, self.part = ref, revision, part
        self.repo, self.file = _parse_hub_name(ref)
        self.where = f"Hub repository {self.repo!r}" + (f" at revision {revision!r}" if revision else "")
        self.token = token
        # Passed on explicitly: huggingface_hub reads the environment only once, when it is first imported.
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.common: dict[str, Any] = {"repo_id": self.repo, "cache_dir": cache_dir}

    def fetch(self) -> Found:
        """Download what is needed, or find it in the cache; see `references.resolve`."""
        if _is_offline():
            return self._from_cache("HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
        # A commit never changes: a complete copy needs no question.
        if self.revision and _COMMIT.fullmatch(self.revision):
            with contextlib.suppress(HubError):
                return self._from_cache("", "")
        try:
            return self._download()
        except (HubError, CheckpointError, UsageError):
            raise
        except Exception as error:  # the library's errors come from several packages, depending on its version
            refused = self._explain(error)
            if refused is not None:
                raise refused from error
            cause = f"{type(error).__name__}: {_first_line(error)}"
            found = self._from_cache(f"{self.endpoint} cannot be reached ({cause})", "check the network")
            _log.warning("%s cannot be reached: using the copy of %s in the download cache", self.endpoint, self.repo)
            return found

    def _download(self) -> Found:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download

        info = HfApi(endpoint=self.endpoint, token=self.token).model_info(self.repo, revision=self.revision)
        names = [sibling.rfilename for sibling in info.siblings or []]
        remote = {**self.common, "endpoint": self.endpoint, "token": self.token, "revision": self.revision}

        def get(name: str) -> Path:
            return Path(hf_hub_download(filename=name, **remote))

        file = self.file or self._only_gguf(names)
        if file is not None and self.part == "config":
            what = f"{self.where}: {file} says its sizes itself, and would be downloaded whole"
            raise HubError(what, "give the repository that it was made from, or download the file and give its path")
        if file is not None:
            ggufs = [name for name in names if name.endswith(".gguf")]
            parts = part_names(file) if file in ggufs else [file]
            for part in parts:
                if part not in names:
                    raise HubError(f"{self.where} holds no {part!r}", did_you_mean(part, ggufs) if ggufs else "")
            return [get(part) for part in parts][parts.index(file)], info.sha
        if self.part == "config" and "config.json" in names:
            return get("config.json").parent, info.sha
        wanted = pick_small_files(names) + self._pick_weights(names, get)
        if MODULES in names and self.part == "model":
            wanted += pick_module_files(names, get(MODULES))
        folder = Path(snapshot_download(allow_patterns=[escape(name) for name in wanted], **remote))
        if self.part == "model" and not is_adapter(folder):
            find_weights(folder)  # says so if anything is still missing
        return folder, info.sha

    def _only_gguf(self, names: list[str]) -> str | None:
        """Return the one GGUF file of a repository that holds nothing else to load; several are an error that lists them."""
        ggufs = whole_models(name for name in names if name.endswith(".gguf"))
        if not ggufs or ("config.json" in names and set(names).intersection(WEIGHT_FILES)):
            return None
        if len(ggufs) == 1:
            return ggufs[0]
        raise HubError(f"{self.where} holds several GGUF files: {some(ggufs)}", f"give one: '{self.repo}:{ggufs[0]}'")

    def _pick_weights(self, names: list[str], get: Any) -> list[str]:
        if self.part == "tokenizer" and holds_tokenizer(names):
            return []
        if ADAPTER_CONFIG in names and not set(names).intersection(WEIGHT_FILES):
            return [name for name in ADAPTER_FILES if name in names][:2]
        if "config.json" not in names:
            fix = not_a_transformer(get(MODULES)) if MODULES in names else ""
            raise HubError(f"{self.where} holds no config.json, so no model that can be loaded: {some(names)}", fix)
        if self.part == "tokenizer":
            return []
        try:
            return choose_weights(names, self.where, get, listed=names)
        except CheckpointError as error:
            raise HubError(error.what, error.fix) from error

    def _from_cache(self, cause: str, fix: str) -> Found:
        """Return what an earlier download left, if it is complete; otherwise raise HubError, which says what is missing."""
        from huggingface_hub import hf_hub_download, snapshot_download

        fix = f"{near_bundled(self.repo)} {fix}, or download the model on another machine and give its folder".lstrip()
        local = {**self.common, "revision": self.revision, "local_files_only": True}
        try:
            if self.file:
                paths = {part: Path(hf_hub_download(filename=part, **local)) for part in part_names(self.file)}
                return paths[self.file], _commit(paths[self.file])
            # In huggingface_hub's patterns `*` crosses folders: "original/tokenizer.model" is not one of our files.
            nested = ["*/" + pattern for pattern in SMALL_FILES if "*" in pattern]
            folder = Path(snapshot_download(allow_patterns=list(SMALL_FILES), ignore_patterns=nested, **local))
        except (OSError, ValueError) as error:  # LocalEntryNotFoundError; IncompleteSnapshotError says which files
            missing = f": {_first_line(error)}" if "Incomplete" in type(error).__name__ else ""
            what = f"{self.file!r} of {self.where}" if self.file else self.where
            raise HubError(f"{what} is not (fully) in the download cache{missing}, and {cause}", fix) from error
        if self.part == "tokenizer" and holds_tokenizer(entry.name for entry in folder.iterdir()):
            return folder, folder.name
        if is_adapter(folder) and any((folder / name).exists() for name in ADAPTER_FILES[1:]):
            return folder, folder.name
        if not (folder / "config.json").exists():
            ggufs = whole_models(str(path) for path in folder.rglob("*.gguf"))
            if len(ggufs) == 1:
                return Path(ggufs[0]), folder.name
            raise HubError(f"{self.where}: the download cache lacks config.json, and {cause}", fix)
        try:
            if self.part == "model":
                find_weights(folder)
                if missing := missing_module_file(folder):
                    raise CheckpointError(f"{missing} is missing")
        except CheckpointError as error:
            what = f"{self.where}: the download cache is incomplete ({error.what}), and {cause}"
            raise HubError(what, fix) from error
        return folder, folder.name

    def _explain(self, error: Exception) -> HubError | UsageError | None:
        """Return what the Hub's refusal means; None when the Hub could not be asked at all."""
        from huggingface_hub import errors

        def refusal(what: str, fix: str = "") -> HubError:
            return HubError(f"{self.where}{what}", fix)

        first, page = _first_line(error), f"{self.endpoint}/{self.repo}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = f"pass {opt('token', ...)}, set HF_TOKEN, or run `hf auth login`"
        if isinstance(error, errors.HFValidationError):
            return UsageError(f"{self.ref!r} is not a Hub name: {first}")
        if isinstance(error, errors.GatedRepoError):
            return refusal(" is gated: its owner asks to accept terms", f"accept them at {page}, then {login}")
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(f"Hub repository {self.repo!r} has no revision {self.revision!r}", f"see {page}/branches")
        if status == 401 and "credentials" in str(error).lower():
            return refusal(": the Hub does not accept this token", f"make a new one, then {login}")
        if isinstance(error, errors.RepositoryNotFoundError):
            near = f"{near_bundled(self.repo)} ".lstrip()
            what = f"{self.repo!r} is not a local path, and there is no such Hub repository (or it is private)"
            return HubError(what, f"{near}check the spelling; for a private one, {login}")
        if isinstance(error, errors.EntryNotFoundError) and status == 404:
            return refusal(f" does not hold a file that it lists: {first}")
        if status in (401, 403):
            return refusal(f": access is forbidden ({status})", f"ask its owner for access, then {login}")
        if status == 429:
            return refusal(": too many requests (429)", f"wait a few minutes; {login} for higher limits")
        if status is not None and status < 500:
            return refusal(f": the Hub answered {status}: {first}")
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            fix = "free space, or set HF_HOME to another folder"
            return HubError(f"the download cache cannot be written: {error}", fix)
        return None


def _is_offline() -> bool:
    import huggingface_hub.constants

    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE") or bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def _commit(path: Path) -> str | None:
    """Return the commit in a cache path, .../snapshots/<commit>/file."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
