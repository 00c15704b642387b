"""Columns of millions of rows as Python sequences: a value becomes an object only when it is asked for.

In a module of its own, away from DuckDB: torch keeps `typing` alive until the interpreter has ended, `typing` keeps
overloaded functions, and those their module's globals; DuckDB would list what it finds among them as leaked.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ROWS_AT_ONCE = 65_536  # rows that are Python objects at a time


class Column(Sequence[Any]):
    """An Arrow array as a sequence of Python values, each made when it is asked for."""

    def __init__(self, values: pa.Array) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> "Column": ...
    def __getitem__(self, place: int | slice) -> Any:
        found = self.values[place if isinstance(place, slice) else int(place)]
        return Column(found) if isinstance(place, slice) else found.as_py()

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield from self.values.slice(start, ROWS_AT_ONCE).to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Column) and bool(self.values.equals(other.values))

    __hash__ = None  # type: ignore[assignment]


def chosen(column: Sequence[Any], indices: NDArray[np.int64]) -> Sequence[Any]:
    """Some entries of a column, or of any other sequence."""
    if isinstance(column, Column):
        return Column(column.values.take(pa.array(indices)))
    return tuple(column[index] for index in indices)


class Files(Sequence[Path]):
    """The path of every image, made when it is asked for."""

    def __init__(self, folders: dict[str, Path], datasets: Sequence[str], paths: Sequence[str]) -> None:
        self._folders, self._datasets, self._paths = folders, datasets, paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> "Files": ...
    def __getitem__(self, place: int | slice) -> "Path | Files":
        if isinstance(place, slice):
            return Files(self._folders, self._datasets[place], self._paths[place])
        return self._folders[self._datasets[place]] / self._paths[place]
