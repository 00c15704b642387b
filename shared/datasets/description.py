"""dataset.yaml: how a folder under DATA_ROOT says what it is.

layout: market1501          # or another public layout, pattern, csv
name: myset                 # default: the folder's name
title: My set               # for tables
aliases: [my]
pattern, split, splits      # layout: pattern, see shared.datasets.pattern
csv: images.csv             # layout: csv, see shared.datasets.csv_table
junk: [-1]                  # of both: identities that stand for junk; this is the default, [] means none
distractors: [0]            # of both: identities that stand for distractors; none unless they are named here
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.datasets.pattern import compile_pattern
from shared.datasets.records import is_safe
from shared.errors import DataError
from shared.schemas import Kind, Split

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
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


Word = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]


class Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: LayoutName
    name: str = ""
    title: str = ""
    aliases: tuple[str, ...] = ()
    pattern: str | None = None
    split: Split | None = None
    splits: dict[str, Split] = {}
    csv: str | None = None
    junk: tuple[Word, ...] = ("-1",)
    distractors: tuple[Word, ...] = ()
    synthetic: bool = False
    generator: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits_the_layout(self) -> Self:
        for key, given in (("pattern", self.pattern), ("csv", self.csv)):
            if (given is not None) != (self.layout == key):
                raise ValueError(f"`{key}:` and `layout: {key}` belong together")
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
                    f"name {name!r}: use letters, digits, '_', '.' and '-', starting with a letter or digit"
                )
        return self

    @property
    def folder_splits(self) -> dict[str, Split]:
        """Of a pattern: folder -> split, "" for the data set's folder itself."""
        return {key.strip("/"): split for key, split in self.splits.items()} or {"": self.split or "all"}

    @property
    def kinds(self) -> dict[str, Kind]:
        """Identity words that stand for no person, and what they stand for."""
        return dict.fromkeys(self.distractors, Kind.DISTRACTOR) | dict.fromkeys(self.junk, Kind.JUNK)


def read_description(path: Path) -> Description:
    """Read a dataset.yaml. Raises DataError when it is no YAML mapping or has wrong or unknown keys."""
    known = ", ".join(Description.model_fields)
    fix = f"correct the file; known keys: {known}"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise DataError(f"not readable as YAML ({' '.join(str(err).split())[:160]})", path=path, fix=fix) from err
    if not isinstance(content, dict):
        raise DataError("not a YAML mapping", path=path, fix=fix)
    if unknown := sorted(str(key) for key in content.keys() - Description.model_fields.keys()):
        raise DataError(f"unknown keys {', '.join(unknown)}", path=path, fix=fix)
    try:
        description = Description(**content)
    except ValidationError as err:
        told = "; ".join(f"{'.'.join(str(at) for at in e['loc']) or 'file'}: {e['msg']}" for e in err.errors())
        raise DataError(told, path=path, fix=fix) from err
    if description.pattern is not None:
        try:
            compile_pattern(description.pattern)
        except DataError as err:
            raise DataError(err.what, path=path, fix=err.fix) from err
    name = description.name or path.parent.name
    if not NAME.fullmatch(name.lower()):
        raise DataError(f"the folder name {name!r} cannot name a data set", path=path, fix="add `name: <short name>`")
    return description.model_copy(update={"name": name.lower()})
