"""dataset.yaml: how a folder under DATA_ROOT says what it is.

| key | value | default |
|---|---|---|
| `layout` | `pattern`, `csv`, or a public layout: `market1501`, `market1501_zero_based`, `msmt17`, `cuhk02`, `cuhksysu`, `viper`, `prid2011`, `grid`, `ilids` | needed |
| `name` | the name on the command line: letters, digits, `_`, `.`, `-` | the folder's name |
| `title` | the name in tables | `name` |
| `aliases` | list of other names for the command line | none |
| `pattern` | for `layout: pattern`: the file names, e.g. `"{identity}_c{camera}_{*}.jpg"`, `"{identity}/{*}.jpg"` or `"{identity:4}{*}"` (four characters) | |
| `split` | for `layout: pattern`: the split of all images: `train`, `query`, `gallery` or `all` | `all` |
| `splits` | for `layout: pattern`, instead of `split`: the split of each sub-folder, in which the pattern then starts, e.g. `{train: train, probe: query, gallery: gallery}` | |
| `csv` | for `layout: csv`: the table of the images, with columns path (in the folder), identity, split and, where it is known, camera | |
| `encoding` | for `layout: csv`: how the table is written where it is neither UTF-8 nor UTF-16: `cp1252`, `shift_jis`, ... | |
| `junk` | for both: list of identities that stand for junk | `[-1]` |
| `distractors` | for both: list of identities that stand for distractors, e.g. `[0]` | none |
| `synthetic` | whether the images are generated | `false` |
| `generator` | how they were generated, recorded only | |
"""  # noqa: E501  (README quotes the table)

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.datasets.pattern import parse_pattern
from shared.datasets.records import USUAL_JUNK, is_safe
from shared.errors import DataError
from shared.schemas import Kind, Split
from shared.yaml_files import YamlFileError, read_mapping

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
LayoutName = Literal[
    "market1501",
    "market1501_zero_based",
    "msmt17",
    "cuhk02",
    "cuhksysu",
    "viper",
    "prid2011",
    "grid",
    "ilids",
    "pattern",
    "csv",
]


Word = Annotated[str, Field(min_length=1, max_length=255, coerce_numbers_to_str=True)]


class ForeignDescriptionError(DataError):
    """A dataset.yaml of another program: it has no `layout:` and no key that only ours have."""


class Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: LayoutName
    name: str = ""
    title: str = Field(default="", max_length=200)
    aliases: tuple[str, ...] = ()
    pattern: str | None = None
    split: Split | None = None
    splits: dict[str, Split] = {}
    csv: str | None = None
    encoding: str | None = Field(default=None, max_length=40)
    junk: tuple[Word, ...] = (USUAL_JUNK,)
    distractors: tuple[Word, ...] = ()
    synthetic: bool = False
    generator: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits_the_layout(self) -> Self:
        for key, given in (("pattern", self.pattern), ("csv", self.csv)):
            if (given is not None) != (self.layout == key):
                raise ValueError(f"`{key}:` and `layout: {key}` belong together")
        if self.encoding is not None and (self.layout != "csv" or not _is_text_encoding(self.encoding)):
            raise ValueError(f"`encoding: {self.encoding}` belongs to `layout: csv` and names a text encoding: cp1252")
        if self.layout != "pattern" and (self.split or self.splits):
            raise ValueError("`split:` and `splits:` belong to `layout: pattern`")
        if self.layout not in ("pattern", "csv") and self.model_fields_set & {"junk", "distractors"}:
            raise ValueError("`junk:` and `distractors:` belong to `layout: pattern` and `layout: csv`")
        if both := sorted(set(self.junk) & set(self.distractors)):
            raise ValueError(f"{', '.join(both)} cannot be junk and a distractor")
        if self.split and self.splits:
            raise ValueError("give `split:` or `splits:`, not both")
        for path in (*self.splits, *([self.csv] if self.csv is not None else [])):
            if not is_safe(path):
                raise ValueError(f"{path!r} leaves the data set's folder")
        for name in (self.name, *self.aliases):
            if name and not NAME.fullmatch(name.lower()):
                raise ValueError(
                    f"name {name!r}: use letters, digits, '_', '.' and '-', starting with a letter or digit, "
                    "64 characters at most"
                )
        return self

    @property
    def folder_splits(self) -> dict[str, Split]:
        """Of a pattern: folder -> split, "" for the data set's folder itself."""
        plain = {PurePosixPath(key).as_posix(): split for key, split in self.splits.items()}
        return {"" if key == "." else key: split for key, split in plain.items()} or {"": self.split or "all"}

    @property
    def kinds(self) -> dict[str, Kind]:
        """Identity words that stand for no person, and what they stand for."""
        return dict.fromkeys(self.distractors, Kind.DISTRACTOR) | dict.fromkeys(self.junk, Kind.JUNK)


def read_description(path: Path) -> Description:
    """Read a dataset.yaml.

    Raises DataError when it is no YAML mapping within the limits of shared.yaml_files or has wrong or unknown keys,
    ForeignDescriptionError when it is not meant for us.
    """
    fix = f"correct the file; known keys: {', '.join(Description.model_fields)}"
    try:
        content = read_mapping(path)
    except OSError as err:
        raise DataError(f"cannot be read: {err.strerror}", path=path, fix=fix) from err
    except YamlFileError as err:
        raise DataError(str(err), path=path, fix=fix) from err
    if "layout" not in content and not content.keys() & Description.model_fields.keys() - {"name", "title"}:
        raise ForeignDescriptionError(
            f"no `layout:`, so it is not a description of a re-identification set (keys: {_keys(content)})",
            path=path,
            fix="add `layout:` if this is a data set for dgreid, otherwise ignore this",
        )
    if unknown := {key: value for key, value in content.items() if key not in Description.model_fields}:
        raise DataError(f"unknown keys {_keys(unknown)}", path=path, fix=fix)
    try:
        description = Description(**content)
        if description.pattern is not None:
            parse_pattern(description.pattern)
    except ValidationError as err:
        told = "; ".join(f"{'.'.join(str(at) for at in e['loc']) or 'file'}: {e['msg']}" for e in err.errors()[:5])
        raise DataError(told[:500], path=path, fix=fix) from err
    except DataError as err:
        raise DataError(err.what, path=path, fix=err.fix) from err
    except ValueError as err:  # a number of thousands of digits
        raise DataError(f"a value cannot be used ({str(err)[:100]})", path=path, fix=fix) from err
    name = description.name or path.parent.name
    if not NAME.fullmatch(name.lower()):
        raise DataError(f"the folder name {name!r} cannot name a data set", path=path, fix="add `name: <short name>`")
    return description.model_copy(update={"name": name.lower()})


def _is_text_encoding(name: str) -> bool:
    try:
        b"a".decode(name, "replace")
    except (LookupError, ValueError):
        return False
    return True


def _keys(content: dict[Any, Any]) -> str:
    return ", ".join(sorted(str(key)[:40] for key in content)[:12]) or "none"
