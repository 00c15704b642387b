"""Object storage: a root may be s3://bucket/prefix, gs://, az:// or hf://, read and written through fsspec.

An ObjectPath has as much of pathlib's interface as the code that reads a root uses, so that one code reads both. What
is not there is told apart from what could not be asked: fsspec's own `exists`, `isfile` and `glob` answer "no" when
the network fails, and a label run that seems empty would be made again. Here all but "not there" is a StorageError.

An object appears whole or not at all: it is put in one request, or as parts that become an object at the end.
"""

import errno
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from shared.errors import ConfigError, DgreidError

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and AWS_ENDPOINT_URL for a server of your own",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "HF_TOKEN",
}
THREADS = 16  # that read objects at the same time: a request is mostly waiting
_SECRET = ("KEY", "SECRET", "TOKEN", "CONNECTION_STRING", "PASSWORD")  # in the names of environment variables
_MISSING = ("NoSuchBucket", "ContainerNotFound")  # codes of an answer that fsspec takes for "no such object"


class StorageError(DgreidError):
    """The store could not be asked, or refused or failed; whether an object is there is not known."""


class ObjectStatus(NamedTuple):
    """What `Path.stat` tells, as far as a store knows it. st_mtime_ns: 63 bits of a hash of the store's mark of the
    content (ETag, or what it has instead), which changes when the content does, or else of the time."""

    st_size: int
    st_mtime: float
    st_mtime_ns: int


@dataclass(frozen=True, eq=False)
class _Store:
    scheme: str
    filesystem: Any  # fsspec's
    listed: dict[str, Mapping[str, Any]] | None = field(default=None)  # what `files` saw, where it may be remembered


class ObjectPath:
    """A place in an object store; folders are what the names of objects begin with."""

    __slots__ = ("_pure", "_store")

    def __init__(self, store: _Store, pure: PurePosixPath) -> None:
        self._store, self._pure = store, pure

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes; what listings said stays here."""
        listed: dict[str, Mapping[str, Any]] | None = None if self._store.listed is None else {}
        return ObjectPath, (replace(self._store, listed=listed), self._pure)

    # ---- names, as pathlib has them

    def __truediv__(self, name: str | PurePosixPath) -> "ObjectPath":
        return ObjectPath(self._store, self._pure / name)

    def __str__(self) -> str:
        return f"{self._store.scheme}://{str(self._pure).lstrip('/')}"

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __lt__(self, other: "ObjectPath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def name(self) -> str:
        return self._pure.name

    @property
    def stem(self) -> str:
        return self._pure.stem

    @property
    def suffix(self) -> str:
        return self._pure.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        return self._pure.parts

    @property
    def parent(self) -> "ObjectPath":
        return ObjectPath(self._store, self._pure.parent)

    @property
    def parents(self) -> list["ObjectPath"]:
        return [ObjectPath(self._store, pure) for pure in self._pure.parents]

    def relative_to(self, other: "ObjectPath") -> PurePosixPath:
        return self._pure.relative_to(other._pure)

    def resolve(self) -> "ObjectPath":
        """Itself: a store has no links."""
        return self

    # ---- what is there; all raise StorageError when the store cannot tell

    @property
    def filesystem(self) -> Any:
        """fsspec's, for libraries that read through it; its name for this place is `key`."""
        return self._store.filesystem

    @property
    def key(self) -> str:
        return str(self._pure)

    def _info(self) -> Mapping[str, Any] | None:
        if self._store.listed is not None and (known := self._store.listed.get(self.key)):
            return known
        with self._asked():
            try:
                found: Mapping[str, Any] = self.filesystem.info(self.key)
            except FileNotFoundError as err:
                _refuse_missing_bucket(err)
                return None
        return found

    def exists(self) -> bool:
        return self._info() is not None

    def is_file(self) -> bool:
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        return (self._info() or {}).get("type") == "directory"

    def stat(self) -> ObjectStatus:
        if (info := self._info()) is None:
            raise FileNotFoundError(2, "no such object", str(self))
        return _status(info)

    def iterdir(self) -> Iterator["ObjectPath"]:
        with self._asked():
            try:
                found = [str(one["name"]).rstrip("/") for one in self.filesystem.ls(self.key, detail=True)]
            except FileNotFoundError as err:
                _refuse_missing_bucket(err)
                raise FileNotFoundError(2, "no such folder", str(self)) from err
        return iter(sorted(self / PurePosixPath(key).name for key in found if key != self.key.rstrip("/")))

    def folders(self) -> list["ObjectPath"]:
        """The folders in this one, sorted; none where it is not there."""
        with self._asked():
            try:
                found = self.filesystem.ls(self.key, detail=True)
            except FileNotFoundError as err:
                _refuse_missing_bucket(err)
                return []
        names = [PurePosixPath(one["name"]).name for one in found if one["type"] == "directory"]
        return sorted(self / name for name in names)

    def files(self) -> dict[str, ObjectStatus]:
        """All objects below, by their path from here, sorted; one request a thousand objects in most stores."""
        with self._asked():
            try:
                found = self.filesystem.find(self.key, detail=True)
            except FileNotFoundError as err:
                _refuse_missing_bucket(err)
                found = {}
        prefix = f"{self.key.rstrip('/')}/"
        objects = {key: info for key, info in found.items() if info["type"] == "file" and not key.endswith("/")}
        if self._store.listed is not None:
            self._store.listed.update(objects)
        return {key.removeprefix(prefix): _status(objects[key]) for key in sorted(objects) if key.startswith(prefix)}

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Objects whose path from here fits a pattern without `**`."""
        depth = pattern.count("/")
        return (self / name for name in self.files() if name.count("/") == depth and PurePosixPath(name).match(pattern))

    # ---- content

    def read_bytes(self, max_bytes: int | None = None) -> bytes:
        """The content, or its first `max_bytes`. Raises FileNotFoundError."""
        with self._asked():
            try:
                if max_bytes is None:
                    return bytes(self.filesystem.cat_file(self.key))
                return bytes(self.filesystem.cat_file(self.key, start=0, end=max_bytes))
            except FileNotFoundError as err:
                _refuse_missing_bucket(err)
                raise FileNotFoundError(2, "no such object", str(self)) from err
            except Exception:
                if max_bytes is not None and (info := self._info()) and not info.get("size"):
                    return b""  # no range fits an empty object
                raise

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self) -> io.RawIOBase:
        """The content as a file of which only what is asked for is fetched. Raises FileNotFoundError."""
        return _Ranges(self, self.stat().st_size)

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes start..end, without the last. Raises FileNotFoundError."""
        with self._asked():
            try:
                return bytes(self.filesystem.cat_file(self.key, start=start, end=end))
            except FileNotFoundError as err:
                _refuse_missing_bucket(err)
                raise FileNotFoundError(2, "no such object", str(self)) from err

    def client_options(self) -> dict[str, str]:
        """For a library that has its own client of the store (Rust's object_store): where an S3 server of one's own is,
        and keys that only fsspec was told. Other credentials it finds where ours does; other stores need nothing."""
        if self._store.scheme != "s3":
            return {}
        with self._asked():
            self.filesystem.connect()
            client = self.filesystem.s3.meta
            address = str(client.endpoint_url)
        found = {"region": client.region_name, "endpoint": None if ".amazonaws.com" in address else address}
        if address.startswith("http://"):
            found["allow_http"] = "true"
        for name, given in {"access_key_id": "key", "secret_access_key": "secret", "session_token": "token"}.items():
            found[name] = getattr(self.filesystem, given, None)
        return {name: value for name, value in found.items() if value}

    def get(self, file: Path) -> None:
        """Write the content to a local file."""
        with self._asked():
            self.filesystem.get_file(self.key, str(file))

    def put(self, file: Path) -> None:
        """Make a local file the object's content; whoever reads sees the old content or the new one."""
        with self._asked():
            self.filesystem.put_file(str(file), self.key)
        self._forget()

    def put_bytes(self, content: bytes) -> None:
        with self._asked():
            self.filesystem.pipe_file(self.key, content)
        self._forget()

    def put_new(self, content: bytes) -> bool:
        """Put an object that is not there; False when it is. S3 and GCS decide it themselves (a conditional request);
        in other stores two processes that ask at the same moment may both succeed."""
        with self._asked():
            try:
                self.filesystem.pipe_file(self.key, content, mode="create")
            except FileExistsError:
                return self.read_bytes() == content  # ours, when an answer got lost and the request was repeated
        self._forget()
        return True

    def copy_to(self, other: "ObjectPath") -> None:
        with self._asked():
            self.filesystem.cp_file(self.key, other.key)

    def unlink(self, missing_ok: bool = False) -> None:
        with self._asked():
            try:
                self.filesystem.rm_file(self.key)
            except FileNotFoundError:
                if not missing_ok:
                    raise FileNotFoundError(2, "no such object", str(self)) from None
        self._forget()

    def _forget(self) -> None:
        if self._store.listed is not None:
            self._store.listed.pop(self.key, None)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as err:
            if err.filename == str(self):  # raised here
                raise
            raise self._error("the bucket does not exist", "create it, or name another") from err
        except Exception as err:  # each store's client has exceptions of its own
            raise self._told(err) from err

    def _told(self, err: Exception) -> StorageError:
        name, text = type(err).__name__, without_secrets(err)
        if getattr(err, "errno", None) == errno.ENOSPC:
            return self._error("the disk of this machine is full", "free some space, or name another place with TMPDIR")
        hints = CREDENTIALS.get(self._store.scheme, "the store's credentials")
        if isinstance(err, PermissionError) or "Credential" in name or "Auth" in name or "Token" in name:
            return self._error(f"the object store refuses access ({text})", f"set {hints}; they must be allowed there")
        if "Connect" in name or "Timeout" in name or isinstance(err, ConnectionError | TimeoutError):
            return self._error(f"the object store cannot be reached ({text})",
                               "check the network and the address, then run the same command again")  # fmt: skip
        return self._error(f"the object store failed ({text})", "run the same command again")

    def _error(self, what: str, fix: str) -> StorageError:
        return StorageError(what, path=str(self), fix=fix)


class _Ranges(io.RawIOBase):
    """An object's content, fetched where it is read."""

    def __init__(self, path: ObjectPath, size: int) -> None:
        self._path, self._size, self._place = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._place + len(buffer), self._size)
        if end <= self._place:
            return 0
        found = self._path.read_range(self._place, end)
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)


def remote(path: object) -> ObjectPath | None:
    """The path, if it lies in an object store."""
    return path if isinstance(path, ObjectPath) else None


def root_path(text: str, *, remember: bool = False) -> Path:
    """A root from its setting: a plain Path, or for a URL an ObjectPath, which is called a Path where both may come.

    Args:
        remember: keep what listings say for the rest of the process; for a root that is only read.

    Raises ConfigError for an unknown scheme or a package that is missing, StorageError when the store cannot be reached
    or refuses, or has no such bucket.
    """
    if "://" not in text:
        return Path(text)
    scheme = text.partition("://")[0].lower()
    try:
        import fsspec  # type: ignore[import-untyped]

        options = {"use_listings_cache": remember, **({"listings_expiry_time": 300} if remember else {})}
        if scheme == "hf":
            options = {}
        filesystem, key = fsspec.core.url_to_fs(text.rstrip("/"), **options)
    except ImportError as err:
        extra = f"'dgreid[{scheme}]'" if scheme == "s3" else {"gs": "gcsfs", "az": "adlfs"}.get(scheme, "fsspec")
        raise ConfigError(f"{scheme}:// needs a package that is not installed ({err})", path=text,
                          fix=f"pip install {extra}") from err  # fmt: skip
    except ValueError as err:
        raise ConfigError(f"not a place that can be used ({err})", path=text,
                          fix="a folder, or s3://bucket/prefix, gs://, az:// or hf://") from err  # fmt: skip
    root = ObjectPath(_Store(scheme, filesystem, {} if remember else None), PurePosixPath(key))
    if remember:
        filesystem.invalidate_cache()  # of an earlier root in this process
    with suppress(FileNotFoundError):
        root.iterdir()  # a wrong key or bucket is told before any work
    return cast(Path, root)


def _status(info: Mapping[str, Any]) -> ObjectStatus:
    def first(*keys: str) -> Any:
        return next((info[key] for key in keys if info.get(key)), "")

    time = first("LastModified", "last_modified", "updated", "mtime", "created")
    mark = first("ETag", "etag", "md5Hash", "blob_id", "generation") or time
    number = int.from_bytes(hashlib.sha256(str(mark).encode()).digest()[:8]) >> 1
    if not isinstance(time, datetime):
        try:
            time = datetime.fromisoformat(str(time))
        except ValueError:  # no time, but another one for another content
            time = datetime.fromtimestamp(number % 2**31, UTC)
    return ObjectStatus(int(info.get("size") or 0), time.timestamp(), number)


def _refuse_missing_bucket(err: FileNotFoundError) -> None:
    """Raises what tells that not the object is missing, but all of its store."""
    code = getattr(err.__cause__, "response", {}).get("Error", {}).get("Code", "")
    if code in _MISSING:
        raise FileNotFoundError(2, "no such bucket") from err


def without_secrets(err: Exception) -> str:
    """The first line of an error, without any value that the environment holds as a secret."""
    text = " ".join((str(err) or type(err).__name__).split())
    for name, value in os.environ.items():
        if len(value) >= 6 and any(word in name for word in _SECRET):
            text = text.replace(value, "***")
    return text[:200]
