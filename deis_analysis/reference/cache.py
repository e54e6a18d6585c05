"""Files of reference solutions, named by all that a reference depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deis_analysis.process.process import MeanReverting, Process
from deis_analysis.storage import atomic, folder
from deis_analysis.validate import real, several

Cache = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
_BESIDE = 2**20  # bytes of all in a file that is not states
_FORMAT = 1  # to be raised where what was kept is no longer an answer to its question


def files(cache: Cache, key: str | None, model: Any, question: Mapping[str, Any]) -> list[Path]:
    """Where the answer to ``question`` may be, in each of the folders.

    Raises:
        ValueError: a cache without a key, a question that cannot be hashed, no folder.
    """
    if cache is None:
        return []
    given = [cache] if isinstance(cache, (str, bytes, os.PathLike)) else several("cache", cache)
    folders = [folder("cache", place) for place in given]
    if not folders:
        raise ValueError("cache=[] must be a folder or several")
    key = getattr(model, "digest", None) if key is None else key
    if not isinstance(key, str) or not key:
        raise ValueError(f"key={key!r} must be a string that says what the model is, such as a hash of its weights")
    name = fingerprint({**question, "key": key})
    return [place / f"{name}.npz" for place in folders]


def fingerprint(question: Mapping[str, Any]) -> str:
    """Hex sha256 of numbers, strings, arrays, processes and lists of such, by name; equal on all machines.

    Raises:
        ValueError: something else, also as a parameter of a process.
    """
    text = json.dumps({"format": _FORMAT, **{k: _described(v) for k, v in question.items()}}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _described(value: Any) -> Any:
    if isinstance(value, Process):
        kind = type(value)
        if isinstance(value, MeanReverting):
            return [kind.__qualname__, _described([value.process, real("mean", value.mean), value.noise_scale])]
        if dataclasses.is_dataclass(value):
            names = [f.name for f in dataclasses.fields(value) if f.init]
        else:
            names = sorted(vars(value))
        own = kind.__module__.startswith("deis_analysis.")  # wherever in the package: as when the first files were made
        home = "deis_analysis.schedules" if own else kind.__module__
        return [f"{home}.{kind.__qualname__}", {n: _described(getattr(value, n)) for n in names}]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [_described(v) for v in value]
    if not hasattr(value, "shape"):
        raise ValueError(f"cache: {value!r} cannot be hashed; allowed: numbers, strings, arrays, processes")
    array = np.ascontiguousarray(real("array", value), dtype="<f8")
    return [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


def load(path: Path, names: set[str], shape: tuple[int, ...]) -> dict[str, Any] | None:
    """The values of those ``names`` that `store` wrote, ``states`` of that shape; None where it cannot give them.

    That is where there is no file; where it is damaged, was edited, or answers another question than its name says, a
    warning tells so, and the next folder is looked into, or the answer computed.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with np.load(path) as file:
            if sum(part.file_size for part in file.zip.infolist()) > 8 * np.prod(shape, dtype=float) + _BESIDE:
                raise ValueError("it is larger than its states")
            found = {name: file[name] if file[name].ndim else file[name].item() for name in file.files}
        if found.pop("question") != path.stem:
            raise ValueError("it answers another question")
        if found.pop("sha256") != _digest(found):
            raise ValueError("its values are not those that were written")
        if set(found) != names or found["states"].shape != shape or not np.isfinite(found["states"]).all():
            raise ValueError("it does not hold what is asked for")
        return found
    except Exception as error:  # zip files and headers break in all ways
        reason = "it was written before files had a checksum" if isinstance(error, KeyError) else error
        warnings.warn(f"the reference {str(path)!r} is passed over: {reason}")
        return None


def store(path: Path, values: Mapping[str, Any]) -> None:
    """Write numbers, strings and arrays, with what tells damage: the question, which names the file, and a checksum.

    The file is there only as a whole. What cannot be written is a warning.
    """
    try:
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **values, question=path.stem, sha256=_digest(values))
    except OSError as error:  # what was computed is worth more than the file
        warnings.warn(f"the reference is not kept: {error}")


def _digest(values: Mapping[str, Any]) -> str:
    """Hex sha256 of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(values):
        array = np.asarray(values[name])
        array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()
