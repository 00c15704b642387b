"""The reference implementation's published part masks: a pickled dict, file name -> float array [R, 128].

A pickle can run any code, so this reader knows four names and nothing else: those that rebuild an array of floats.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError

ROWS, COLUMNS = 16, 8  # the patch grid of 256 x 128 pixels with stride 16
FLOATS = frozenset({"f2", "f4", "f8"})


def read_masks(path: Path) -> dict[str, NDArray[np.bool_]]:
    """File name -> visible patches, bool [R, 16, 8]; 0 in the file is visible, -inf hidden.

    Raises DataError when the file is missing, holds anything but a dict of float arrays, or other values than these.
    """
    fix = "use the file as it was published; anything else is refused, because a pickle can run programs"
    try:
        with path.open("rb") as file:
            content = _Reader(file).load()
    except OSError as err:
        raise DataError(f"the masks cannot be read ({err.strerror})", path=path, fix="name the .pkl file") from err
    except DataError as err:
        raise DataError(err.what, path=path, fix=fix) from err
    except Exception as err:  # a hostile pickle raises what it likes; all of it means the same
        raise DataError(f"no readable pickle ({type(err).__name__}: {str(err)[:120]})", path=path, fix=fix) from err
    if not isinstance(content, dict) or not content:
        raise DataError("not a dict of masks", path=path, fix=fix)
    return {_checked_name(name, path, fix): _visible(name, array, path, fix) for name, array in content.items()}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise DataError(f"the file asks for {module}.{name}", fix="")
        return found

    def persistent_load(self, _: Any) -> Any:
        raise DataError("the file refers to objects outside of it", fix="")


def _dtype(text: Any, *arguments: Any) -> np.dtype[Any]:
    """Floats only: object arrays could hold, and call, anything."""
    if not isinstance(text, str) or text.lstrip("<>=|") not in FLOATS:
        raise DataError(f"the file holds an array of {text!r}, not of floats", fix="")
    return np.dtype(text, *arguments)


def _bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise DataError("the file asks for _codecs.encode of something else than bytes", fix="")
    return text.encode("latin-1")


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> NDArray[Any]:
    if not isinstance(buffer, (bytes, bytearray)) or not isinstance(dtype, np.dtype):
        raise DataError("the file holds an array without its numbers", fix="")
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _bytes,
}


def _checked_name(name: Any, path: Path, fix: str) -> str:
    if not isinstance(name, str):
        raise DataError(f"a key that is no file name: {name!r}"[:200], path=path, fix=fix)
    return name


def _visible(name: str, array: Any, path: Path, fix: str) -> NDArray[np.bool_]:
    if (
        not isinstance(array, np.ndarray)
        or array.dtype.kind != "f"
        or array.ndim != 2
        or array.shape[1] != ROWS * COLUMNS
    ):
        told = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{name!r} is {told}, not a float array [parts, {ROWS * COLUMNS}]", path=path, fix=fix)
    visible: NDArray[np.bool_] = array == 0
    if not (visible | np.isneginf(array)).all():
        raise DataError(f"{name!r} has values that are neither 0 (visible) nor -inf (hidden)", path=path, fix=fix)
    return visible.reshape(-1, ROWS, COLUMNS)
