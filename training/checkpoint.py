"""Checkpoints: written atomically, verified by checksum, loaded without executing code.

    <run>/checkpoints/step_00000100/
        model.safetensors       every weight once, under its first name
        optimizer.safetensors   optimizer state of each parameter, by parameter name
        rng.json                states of the random number generators
        state.json              schema_version, step, val_loss, state of the training loop
        plugins/                source code of the user's plugins
        tokenizer.json          the tokenizer, if it is a Hugging Face tokenizer
        manifest.json           size and sha256 of every file above; written last

A checkpoint is written to a temporary folder next to its final path and renamed once it is on disk,
so killing the run at any moment leaves earlier checkpoints intact.

Checkpoints are not trusted: every file must be a regular file listed in the manifest, the size of
JSON files is limited, and invalid content raises UserError.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import re
import shutil
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.tokenizer_json import TOKENIZER_FILE
from errors import UserError, nearest
from safe_files import open_regular, read_json, usual_permissions
from training.sharded_tensors import Parts, own_tensors
from training.updates import Updates

SCHEMA_VERSION = 1
NEWEST = ("latest", "auto")

_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_RNG = "rng.json"
_STATE = "state.json"
_PLUGINS = "plugins"
_MANIFEST = "manifest.json"
_REQUIRED = (_MODEL, _OPTIMIZER, _RNG, _STATE)

_NEWEST_TRIES = 5

_HELD_OPEN = (PermissionError,) if os.name == "nt" else ()
"""Raised on Windows when deleting a checkpoint that another process reads; it is deleted after the
next one is saved."""

Loaded = TypeVar("Loaded")


class Vanished(UserError):
    """A checkpoint was deleted while it was being read; runs delete their older checkpoints."""


_TEMPORARY = ".tmp_"
_REPLACED = ".old"
_NAME = re.compile(rf"step_(\d{{8,}})({re.escape(_REPLACED)})?")


# --- saving


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    weights: dict[str, Tensor],
    kept: dict[str, Tensor],
    state: dict[str, Any],
    val_loss: float | None,
    plugins: dict[str, str],
    keep: int,
    rng: dict[str, Any] | None = None,
    tokenizer_files: Mapping[str, bytes] = types.MappingProxyType({}),
) -> Path:
    """Save a checkpoint and delete the ones that are no longer needed.

    The newest `keep` checkpoints and the one with the lowest `val_loss` are kept. Checkpoints of
    later steps are deleted: the run was resumed from an earlier step, so they no longer belong to
    it.

    Args:
        folder: The run's `checkpoints` folder; created if missing. The run directory must exist.
        step: Optimizer steps done. An existing checkpoint of the same step is replaced.
        weights: The model's weights, from `whole_weights`.
        kept: The optimizer state, from `Updates.gathered`.
        state: Additional values for `load_state` to return; must be JSON-serializable.
        val_loss: Validation loss of exactly these weights; None if it was not measured.
        plugins: Maps the file name of each plugin to its source code.
        keep: Number of newest checkpoints to keep, at least 1.
        rng: States of the random number generators, from `capture_rng`. Defaults to the current
            states.
        tokenizer_files: `Tokenizer.files` of the data's tokenizer.

    Returns:
        The folder of the checkpoint.

    Raises:
        ValueError: If a plugin's name is not that of a .py file, or `state` has a reserved key.
        UserError: If the disk is full or not writable, or the run directory is gone. Earlier
            checkpoints are unchanged, and no partial checkpoint is left.
    """
    target = folder / f"step_{step:08d}"
    with _saving(folder):
        folder.mkdir(exist_ok=True)  # no `parents`: fail if the run directory was removed
        _remove_leftovers(folder)
        with _draft_of(target) as draft:
            _save_tensors(draft / _MODEL, weights)
            _save_tensors(draft / _OPTIMIZER, kept)
            _write_json(draft / _RNG, rng or capture_rng())
            _write_json(draft / _STATE, _full_state(step, val_loss, state))
            _write_plugins(draft / _PLUGINS, plugins)
            for name, content in tokenizer_files.items():
                (draft / name).write_bytes(content)
            _write_json(draft / _MANIFEST, {"files": _fingerprints(draft)})
            _flush_to_disk(draft)
            _publish(draft, target)
        _prune(folder, step, keep)
    return target


@contextlib.contextmanager
def _saving(folder: Path) -> Iterator[None]:
    """Turn an OSError while saving into a UserError that names the newest checkpoint."""
    try:
        yield
    except OSError as error:
        saved = [path.name for path in list_checkpoints(folder)]
        left = f"the newest checkpoint is {saved[-1]}" if saved else "it has no checkpoint yet"
        raise UserError(
            f"cannot save a checkpoint in {folder}: {error.strerror or error}; {left}. Free space "
            f"or restore the directory, then continue with --resume={folder.parent}."
        ) from error


@contextlib.contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """Yield a temporary directory next to the target; remove it if saving fails."""
    draft = target.with_name(f"{_TEMPORARY}saving_{target.name}")
    try:
        draft.mkdir()
        yield draft
    except (Exception, KeyboardInterrupt):
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _save_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    try:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with usual_permissions(file):
            save_file(contiguous, file, metadata={"format": "pt"})
    except SafetensorError as error:  # safetensors wraps an OSError, such as that of a full disk
        raise OSError(str(error)) from error


def _full_state(step: int, val_loss: float | None, state: dict[str, Any]) -> dict[str, Any]:
    measured = val_loss is not None and math.isfinite(val_loss)
    ours = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "val_loss": val_loss if measured else None,
    }
    taken = sorted(ours.keys() & state.keys())
    if taken:
        raise ValueError(
            f"state contains reserved keys ({', '.join(taken)}); rename or remove them."
        )
    return ours | state


def _write_plugins(folder: Path, plugins: dict[str, str]) -> None:
    for name, source in plugins.items():
        if not _is_plain_py(name):
            raise ValueError(
                f"plugin {name!r} is not the plain name of a .py file; remove the path."
            )
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(source.encode())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(folder: Path) -> None:
    """Flush the folder and everything in it to disk."""
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # folders can be opened on POSIX systems only
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(draft: Path, target: Path) -> None:
    """Rename a finished draft to its final name.

    An existing checkpoint of that name is first renamed to a name that `list_checkpoints` also
    recognizes, so that one of the two can be found at any moment.
    """
    replaced = target.with_name(target.name + _REPLACED)
    if target.exists():
        os.rename(target, replaced)
    os.rename(draft, target)
    _fsync(target.parent)
    if replaced.exists():
        _remove(replaced)


def _prune(folder: Path, step: int, keep: int) -> None:
    checkpoints = [path for path in list_checkpoints(folder) if _step_of(path) <= step]
    kept = set(checkpoints[-keep:])
    best = min(checkpoints, key=_val_loss)
    if math.isfinite(_val_loss(best)):
        kept.add(best)
    for path in list_checkpoints(folder):
        if path not in kept:
            with contextlib.suppress(*_HELD_OPEN):
                _remove(path)


def _val_loss(path: Path) -> float:
    """The validation loss of a checkpoint; infinite if it was not measured or cannot be read."""
    try:
        loss = load_state(path)["val_loss"]
    except UserError:
        return math.inf
    return math.inf if loss is None else loss


def _remove(path: Path) -> None:
    """Delete a folder, renaming it first so that a partly deleted one is never used."""
    doomed = path.with_name(f"{_TEMPORARY}removing_{path.name}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left behind: drafts, partly deleted and replaced checkpoints."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)
    for path in folder.glob(f"*{_REPLACED}"):
        if path.with_suffix("").exists():
            _remove(path)


# --- finding


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a `checkpoints` folder, sorted by step. They are not verified."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step_*")):  # a replaced one sorts after its successor
        if _NAME.fullmatch(path.name):
            found.setdefault(_step_of(path), path)
    return [found[step] for step in sorted(found)]


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1])


def verify(path: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        UserError: If a file is damaged; the message names it and says why.
    """
    for name, (size, sha256) in _read_manifest(path).items():
        with _reading(path, name) as file:
            actual_size = file.stat().st_size
            actual_sha256 = _sha256(file) if actual_size == size else None
        if actual_size != size:
            raise UserError(f"{file} has {actual_size} bytes, but its manifest says {size}.")
        if actual_sha256 != sha256:
            raise UserError(
                f"{file} was altered: its sha256 is {actual_sha256}, but its manifest says "
                f"{sha256}."
            )


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Iterator[Path]:
    """Yield the path of a checkpoint's file after checking that it is a regular file.

    Raises:
        Vanished: If the checkpoint no longer exists.
        UserError: If it is not a regular file inside the folder, or if the body raises an error of
            the file system, of safetensors or of torch.
    """
    file = path / name
    try:
        if file.parent != path and file.parent.is_symlink():
            raise UserError(f"{file.parent} is a symbolic link; replace it with a folder.")
        open_regular(file).close()
        yield file
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError if it cannot map a file
        if not path.is_dir():
            raise Vanished(f"{path} was deleted while it was being read; try again.") from error
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read: {reason}.") from error
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}.") from error


def _read_json(path: Path, name: str) -> dict[str, Any]:
    with _reading(path, name) as file:
        content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it does not contain a JSON object.")
    return content


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Read the size and sha256 of each file, by file name."""
    files = _read_json(path, _MANIFEST).get("files")
    if not isinstance(files, dict) or not all(map(_is_fingerprint, files.values())):
        raise UserError(f"{path / _MANIFEST} is not a manifest: it has no valid `files` entry.")
    missing = [name for name in _REQUIRED if name not in files]
    if missing:
        raise UserError(f"{path / _MANIFEST} does not list {', '.join(missing)}.")
    known = (*_REQUIRED, TOKENIZER_FILE)
    strange = [name for name in files if name not in known and not _is_plugin(name)]
    if strange:
        raise UserError(
            f"{path / _MANIFEST} lists {strange[0]!r}, which does not belong to a checkpoint."
        )
    return {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}


def _is_fingerprint(entry: Any) -> bool:
    return isinstance(entry, dict) and is_count(entry.get("size")) and _is_sha256(entry)


def _is_sha256(entry: dict[str, Any]) -> bool:
    digest = entry.get("sha256")
    return isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) is not None


def _is_plugin(name: str) -> bool:
    """Whether `name` is `plugins/<plain name>.py`."""
    folder, _, file = name.partition("/")
    return folder == _PLUGINS and _is_plain_py(file)


def _is_plain_py(name: str) -> bool:
    return bool(name) and not set(name) & set("/\\\0") and Path(name).suffix == ".py"


def is_count(value: Any) -> bool:
    """Whether a value read from JSON is a valid count: an int of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**1023 if isinstance(value, int) else math.isfinite(value)


def newest_whole(folder: Path) -> tuple[Path, list[str]]:
    """Find the newest intact checkpoint in a `checkpoints` folder.

    Returns:
        The checkpoint, and a note for each newer one that was skipped.

    Raises:
        Vanished: If one was deleted while it was being read, because a newer one was saved.
        UserError: If there is no intact checkpoint.
    """
    notes: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            verify(path)
        except Vanished:
            raise
        except UserError as error:
            notes.append(f"Skipped the damaged checkpoint {path.name}: {error}")
        else:
            return path, notes
    found = "\n".join(notes) or "It contains none; let the run save one first."
    raise UserError(f"no intact checkpoint in {folder}.\n{found}")


def runs_newest_first(out_dir: Path) -> list[Path]:
    """The runs anywhere under `out_dir` that have a checkpoint, most recently saved first."""
    saved_at = {}
    # Unlike rglob, os.walk skips a folder that is deleted during the walk.
    for place, folders, _ in os.walk(out_dir):
        if "checkpoints" not in folders:
            continue
        folders.remove("checkpoints")
        folder = Path(place) / "checkpoints"
        checkpoints = list_checkpoints(folder)
        if checkpoints:
            saved_at[folder.parent] = _saved_at(checkpoints[-1])
    return sorted(saved_at, key=lambda run: saved_at[run], reverse=True)


def _saved_at(checkpoint: Path) -> int:
    """The time at which a checkpoint was saved, in nanoseconds, or at which it was deleted."""
    try:
        return checkpoint.stat().st_mtime_ns
    except FileNotFoundError:
        return checkpoint.parent.stat().st_mtime_ns


def load_newest(
    where: str, out_dir: Path, load: Callable[[Path], Loaded]
) -> tuple[Loaded, Path, list[str]]:
    """Find a checkpoint and load from it, even while its run deletes older ones.

    If the checkpoint is deleted before it is loaded, the search starts over.

    Args:
        where: A checkpoint, as in `find_checkpoint`.
        out_dir: The folder that contains the runs.
        load: Loads from a verified checkpoint.

    Returns:
        The result of `load`, the checkpoint, and a note for each newer one that was skipped.

    Raises:
        UserError: As in `find_checkpoint` and `load`, or if every checkpoint was deleted.
    """
    for _ in range(_NEWEST_TRIES):
        with contextlib.suppress(Vanished):
            path, notes = find_checkpoint(where, out_dir)
            return load(path), path, notes
    raise UserError(
        f"{_NEWEST_TRIES} checkpoints of {where!r} in a row were deleted before they could be "
        "read, because its run saves too often. Raise its keep_checkpoints, or wait until it ends."
    )


def find_checkpoint(where: str, out_dir: Path) -> tuple[Path, list[str]]:
    """Find and verify the checkpoint that a user refers to.

    Args:
        where: `latest` or `auto` (the run that saved most recently), the name of a run under
            `out_dir`, a run directory, or the folder of a checkpoint.
        out_dir: The folder that contains the runs.

    Returns:
        The checkpoint, and a note for each newer one that was skipped.

    Raises:
        Vanished: If it was deleted while it was being read; `load_newest` tries again.
        UserError: If there is no such checkpoint, or it is damaged.
    """
    if where in NEWEST:
        runs = runs_newest_first(out_dir)
        if not runs:
            raise UserError(
                f"no run under {out_dir} has a checkpoint; train a model, or give the path of a "
                "checkpoint."
            )
        return newest_whole(runs[0] / "checkpoints")
    for path in (Path(where), out_dir / where):
        if os.path.isdir(path / "checkpoints"):
            return newest_whole(path / "checkpoints")
        if os.path.isdir(path) and (_NAME.fullmatch(path.name) or (path / _MANIFEST).is_file()):
            verify(path)
            return path, []
    names = [run.relative_to(out_dir).as_posix() for run in runs_newest_first(out_dir)]
    raise UserError(
        f"{where!r} is neither a run under {out_dir} nor the folder of a run or checkpoint"
        f"{nearest(where, names)} Runs with a checkpoint: {', '.join(names) or 'none'}."
    )


# --- loading (from a checkpoint that `verify` has passed)


def load_state(path: Path) -> dict[str, Any]:
    """Load the `state` given to `save_checkpoint`, plus `schema_version`, `step` and `val_loss`.

    Raises:
        UserError: If the checkpoint has another schema version, or one of these values is invalid.
    """
    state = _read_json(path, _STATE)
    version = state.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has checkpoint schema {version!r}, but this version reads {SCHEMA_VERSION}; "
            "load it with the version that wrote it."
        )
    loss = state.get("val_loss")
    if not is_count(state.get("step")) or not (loss is None or is_number(loss)):
        raise UserError(f"{path / _STATE} is damaged: its step or val_loss is not a number.")
    return state


def load_plugins(path: Path) -> dict[str, str]:
    """The source code of each plugin, by file name. Raises UserError if it cannot be read."""
    names = [name for name in _read_manifest(path) if _is_plugin(name)]
    sources = {}
    for name in sorted(names):
        with _reading(path, name) as file:
            try:
                sources[file.name] = file.read_bytes().decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{file} is not UTF-8: {error}.") from error
    return sources


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each saved weight; reads only the header of the file."""
    with _reading(path, _MODEL) as file, safe_open(file, "pt") as saved:
        names = saved.keys()
        shapes = {name: tuple(saved.get_slice(name).get_shape()) for name in names}
    return {_current_name(name): shape for name, shape in shapes.items()}


def refuse_other_shapes(path: Path, model: nn.Module) -> None:
    """Raise UserError if the names or shapes of a checkpoint's weights differ from a model's.

    Reads only the header of the file. The model may be on the meta device.
    """
    own = {name: tuple(tensor.shape) for name, tensor in own_tensors(model).items()}
    _refuse_misfit(path / _MODEL, weight_shapes(path), own)


def load_model_weights(path: Path, model: nn.Module, parts: Parts | None = None) -> None:
    """Copy the weights of a checkpoint into a model of the same shape, on any device.

    Args:
        path: The checkpoint.
        model: The model.
        parts: The parts of the tensors that this worker holds. Defaults to whole tensors.

    Raises:
        UserError: If weights do not match; the message names them.
    """
    parts = parts or Parts()
    saved, own = _read_tensors(path, _MODEL), own_tensors(model)
    whole = {name: _kind(t.dtype, parts.shape(name, t)) for name, t in own.items()}
    _refuse_misfit(path / _MODEL, _kinds(saved), whole)
    with torch.no_grad():
        for name, tensor in saved.items():
            parts.copy(name, tensor, own[name])


def _read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    with _reading(path, name) as file:
        return {_current_name(name): tensor for name, tensor in load_file(file).items()}


def _current_name(name: str) -> str:
    """Translate a weight's name from checkpoints in which every mixer was called `attention`."""
    return re.sub(r"^(blocks\.\d+)\.attention(?=\.|_norm|_out_norm)", r"\1.mixer", name)


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: _kind(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _kind(dtype: torch.dtype, shape: Sequence[int]) -> str:
    """Describe a tensor by its shape, preceded by its dtype unless that is a float."""
    return f"{'' if dtype.is_floating_point else f'{dtype} '}{tuple(shape)}"


def load_optimizer(path: Path, updates: Updates) -> None:
    """Load the optimizer state of a checkpoint, matched by parameter name.

    Learning rate, betas and weight decay are not loaded: they come from the config.

    Raises:
        UserError: If entries do not match the model and its optimizer; the message names them.
    """
    saved = {
        entry: tensor
        for entry, tensor in _read_tensors(path, _OPTIMIZER).items()
        if _parameter_of(entry) not in updates.elsewhere
    }
    with_state = {_parameter_of(entry) for entry in saved}  # others have had no gradient yet
    updates.create_state(with_state)
    own = {entry: _kind(dtype, shape) for entry, (dtype, shape) in updates.slots().items()}
    _refuse_misfit(path / _OPTIMIZER, _kinds(saved), own)
    for entry, tensor in saved.items():
        updates.put(entry, tensor)


def _parameter_of(entry: str) -> str:
    return entry.rpartition(".")[0]


def _refuse_misfit(file: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    problems = [f"{name} is not in the model" for name in saved if name not in own]
    problems += [f"{name} is missing" for name in own if name not in saved]
    problems += [
        f"{name} is {saved[name]} in the checkpoint and {own[name]} in the model"
        for name in saved
        if name in own and saved[name] != own[name]
    ]
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise UserError(
            f"{file} does not match the model ({len(problems)} differences): {shown}. "
            f"Build the model from the config in {file.with_name(_STATE)}."
        )


# --- random number generators


def capture_rng() -> dict[str, Any]:
    """The states of Python's, NumPy's global and torch's generators, JSON-serializable."""
    version, words, gauss_next = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    numpy_words = numpy_state["state"]["key"].tolist()
    return {
        "python": [version, list(words), gauss_next],
        "numpy": numpy_state | {"state": numpy_state["state"] | {"key": numpy_words}},
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()],
        "mps": _hex(torch.mps.get_rng_state()) if torch.backends.mps.is_available() else None,
    }


def restore_rng(states: dict[str, Any]) -> None:
    """Restore the states from `capture_rng`; states of missing devices are ignored."""
    version, words, gauss_next = states["python"]
    random.setstate((version, tuple(words), None if gauss_next is None else float(gauss_next)))
    numpy_words = states["numpy"]["state"]
    if not 0 <= numpy_words["pos"] <= len(numpy_words["key"]):
        raise ValueError(f"NumPy's position {numpy_words['pos']} is outside its state")
    key = np.array(numpy_words["key"], dtype=np.uint32)
    np.random.set_state(states["numpy"] | {"state": numpy_words | {"key": key}})
    torch.set_rng_state(_from_hex(states["torch"]))
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(_from_hex(state), device)
    if states["mps"] and torch.backends.mps.is_available():
        torch.mps.set_rng_state(_from_hex(states["mps"]))


def load_rng(path: Path) -> None:
    """Restore the random number generators to their states at the checkpoint.

    Raises:
        UserError: If the saved states are invalid.
    """
    states = _read_json(path, _RNG)
    try:
        restore_rng(states)
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"{path / _RNG} is damaged: {type(error).__name__}: {error}. Resume from another "
            "checkpoint."
        ) from error


def _hex(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _from_hex(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
