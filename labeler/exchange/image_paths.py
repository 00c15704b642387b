"""Finds the image that a path in a foreign file refers to: tools store absolute paths, URLs, or changed names."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from labeler.exchange.foreign_json import NotUnderstoodError
from shared.schemas import ManifestRow

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio puts this before the name of an uploaded file


class ImagePaths:
    """The images of one data set, by path and name.

    Args:
        rows: the data set's readable images; rows of the same bytes (one image_id) are one image.
    """

    def __init__(self, rows: Iterable[ManifestRow]) -> None:
        self._by_path: dict[str, ManifestRow] = {}
        self._by_name: dict[str, list[ManifestRow]] = defaultdict(list)
        self._by_uploaded_name: dict[str, list[ManifestRow]] = defaultdict(list)
        for row in rows:
            path = _composed(row.path)
            name = PurePosixPath(path).name
            self._by_path[path] = row
            self._by_name[name].append(row)
            self._by_uploaded_name[_django_name(name)].append(row)
        self._folders = {str(PurePosixPath(path).parent) for path in self._by_path} - {"."}

    def find_named(self, names: Sequence[str]) -> ManifestRow | None:
        """The image that these names of one image refer to, or None.

        Raises NotUnderstoodError when the names are of different images, or ambiguous and none of them is not.
        """
        found: dict[str, ManifestRow] = {}
        doubt: NotUnderstoodError | None = None
        for name in names:
            try:
                row = self.find(name)
            except NotUnderstoodError as err:
                doubt = doubt or err
                continue
            if row is not None:
                found.setdefault(row.image_id, row)
        if len(found) > 1:
            first, second, *_ = found.values()
            raise NotUnderstoodError(f"it is called both {first.path} and {second.path}")
        if doubt and not found:
            raise doubt
        return next(iter(found.values()), None)

    def find(self, path: str) -> ManifestRow | None:
        """The image that `path` refers to, or None.

        In this order: the image with this path; those whose path ends in it, or with whose path it ends (the longest);
        the only image of this name, unless `path` lies in a folder of the data set; the only image of the name that
        Label Studio changed at an upload. `path` may be a URL with a query and percent-encoding, and may have Windows
        separators.

        Raises NotUnderstoodError when the path is ambiguous.
        """
        spellings = list(dict.fromkeys(_spellings(path)))
        for spelling in spellings:
            if spelling in self._by_path:
                return self._by_path[spelling]
        named = {row.path: row for spelling in spellings for row in self._by_name.get(PurePosixPath(spelling).name, ())}
        ending = {
            row.path: common
            for row in named.values()
            for spelling in spellings
            if (common := _common_ending(_composed(row.path), spelling))
        }
        longest = max(ending.values(), default=0)
        found = [named[own] for own, common in ending.items() if common == longest]
        if not found and not any(map(self._in_known_folder, spellings)):
            found = list(named.values())
        if not found:
            uploaded = [match[1] for one in spellings if (match := _UPLOADED.fullmatch(PurePosixPath(one).name))]
            found = [row for name in uploaded for row in self._by_uploaded_name.get(_django_name(name), ())]
        if len({row.image_id for row in found}) > 1:
            raise NotUnderstoodError(
                f"ambiguous path: {found[0].path} or {found[1].path}; keep the paths relative to the data set's folder"
            )
        return found[0] if found else None

    def _in_known_folder(self, spelling: str) -> bool:
        """Whether a path lies in a folder of the data set, which then is not another program's folder."""
        folder = PurePosixPath(spelling).parent.parts
        return any("/".join(folder[start:]) in self._folders for start in range(len(folder)))


def _spellings(path: str) -> Iterator[str]:
    """Readings of a path or URL, the literal one first; without `.`, `..` and a leading slash."""
    yield _plain(path)
    with suppress(ValueError):  # a text like "http://[" is not a URL
        address = urlsplit(path)
        yield from (_plain(value) for value in parse_qs(address.query).get("d", ()))  # of Label Studio's local files
        yield _plain(unquote(path.rpartition("?d=")[2]))
        yield _plain(unquote(address.path))
    yield _plain(unquote(path))


def _plain(path: str) -> str:
    parts = _composed(path).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _common_ending(path: str, other: str) -> int:
    """Number of components of the shorter path when the longer one ends in it, else 0."""
    own, others = path.split("/"), other.split("/")
    shorter = min(len(own), len(others))
    return shorter if own[-shorter:] == others[-shorter:] else 0


def _django_name(name: str) -> str:
    """The name under which Django, and so Label Studio, stores an uploaded file."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))
