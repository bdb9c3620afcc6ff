"""PyTorch `.bin` files, read as data only: `torch.load(weights_only=True)`, memory-mapped where the file is a zip.

A `.bin` file is a pickle, and a pickle is a program. `weights_only` runs an interpreter that knows tensors and plain
containers and refuses everything else; what it refuses is an error here, and there is no way around it in this library.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainformer.checkpoint.formats.source import StoredTensor, TensorSource, checked_file, wrong_content
from plainformer.errors import CheckpointError, a_type

if TYPE_CHECKING:
    import torch

_CONVERT = "convert it to safetensors on a machine where you trust the file, or use a checkpoint that has safetensors"
# Keys under which training programs keep the state dict, beside an optimizer and the like.
_NESTED = ("state_dict", "model_state_dict", "model", "module", "params", "net")


def open_torch(path: Path) -> TensorSource:
    """Open one `pytorch_model.bin`; zip files are memory-mapped, older ones are read into memory.

    Raises:
        CheckpointError: missing, misnamed, damaged, containing code, or not a flat dictionary of dense tensors.
    """
    with checked_file(path).open("rb") as file:
        head = file.read(4)
    zipped = head == b"PK\x03\x04"
    if zipped:
        _check_archive(path)
    elif head[:1] != b"\x80":  # every torch.save before 1.6 begins with a pickle of protocol 2 or later
        raise wrong_content(path, "PyTorch .bin")
    tensors = {
        name: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.detach)
        for name, tensor in _checked_state_dict(path, _load(path, zipped)).items()
    }
    return TensorSource(path, "pytorch .bin" if zipped else "pytorch .bin (before version 1.6)", tensors)


def _bad(path: Path, what: str, fix: str = _CONVERT) -> CheckpointError:
    return CheckpointError(f"{path}: {what}", fix)


def _check_archive(path: Path) -> None:
    """Refuse what torch.save never writes: compressed records, and records that claim more than the file holds.

    torch.load would inflate a few kilobytes of a "zip bomb" into gigabytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, EOFError) as error:
        what = f"truncated or damaged: its zip directory cannot be read ({error})"
        raise _bad(path, what, "download it again") from error
    names = [record.filename for record in records]
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise _bad(path, "holds compressed records, which torch.save never writes")
    if sum(record.file_size for record in records) > path.stat().st_size or len(set(names)) != len(names):
        raise _bad(path, "its records overlap or are larger than the file", "the file is forged")
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise _bad(path, "is a TorchScript program, not a file of weights")
    if not any(name.endswith("/data.pkl") for name in names):
        raise _bad(path, "is a zip archive, but not one from torch.save", "it holds " + ", ".join(names[:5]))


def _load(path: Path, zipped: bool) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own internals (TypedStorage), nothing for the reader
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # torch's own text advises to load with weights_only=False, which would run the file.
        named = re.search(r"GLOBAL (\S+)", str(error))
        found = (
            f"contains code or Python objects ({named[1]}), which are" if named else "is damaged, or holds code, and is"
        )
        raise _bad(path, f"{found} refused; nothing was executed") from None
    except Exception as error:  # damaged bytes surface as almost any exception of torch or of the unpickler
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise _bad(path, f"truncated or damaged: {type(error).__name__}: {first}", "download it again") from None


def _checked_state_dict(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(loaded, dict):
        raise _bad(path, f"holds {a_type(loaded)}, not a dictionary of tensors")
    for key in _NESTED:
        if isinstance(loaded.get(key), dict):
            others = [other for other in list(loaded)[:6] if other != key]
            fix = f"save that part alone: torch.save(torch.load(path, weights_only=True)[{key!r}], path)"
            raise _bad(path, f"is a training checkpoint: its weights are under the key {key!r}, beside {others}", fix)
    file_bytes = path.stat().st_size
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise _bad(path, f"the key {name!r} is not a tensor name")
        if not isinstance(value, torch.Tensor):
            raise _bad(path, f"{name!r} is {a_type(value)}, not a tensor", "save the model's state_dict() alone")
        if problem := _problem(value, file_bytes):
            raise _bad(path, f"tensor {name!r} {problem}")
    return loaded


def _problem(tensor: torch.Tensor, file_bytes: int) -> str:
    """Return why a tensor cannot be taken as it is. A stride of 0 could make petabytes out of four bytes at the first copy."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        return f"is not a plain dense tensor ({type(tensor).__name__}, {tensor.layout}, {tensor.dtype})"
    if tensor.device.type != "cpu":
        return f"has no values (device {tensor.device})"
    size = tensor.numel() * tensor.element_size()
    if size > file_bytes or tensor.untyped_storage().nbytes() > file_bytes:
        return f"claims {size:,} bytes, the file has {file_bytes:,}"
    return ""
