"""Which data sets there are, what people call them, and where they lie under the data root."""

import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from shared.datasets import csv_table, pattern
from shared.datasets.description import Description, ForeignDescriptionError, read_description
from shared.datasets.layouts import LAYOUTS
from shared.datasets.records import DESCRIPTION_FILE, Scan
from shared.errors import ConfigError, DataError, UsageError, did_you_mean
from shared.object_storage import remote
from shared.schemas import Kind


@dataclass(frozen=True)
class DatasetSpec:
    """A data set by name, whether or not it is on this machine."""

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()  # folder names seen in the wild, besides name and aliases; case and signs are ignored
    layouts: tuple[str, ...] = ("market1501",)  # tried in this order
    cameras_known: bool = True
    variant: str = ""  # the sub-folder that holds this one of several releases in one folder
    beside: str = ""  # the data set whose folder may hold this release too
    folder: Path | None = None  # of a set declared by a dataset.yaml
    description: Description | None = None
    problem: UsageError | None = None  # why a folder that says it is a data set cannot be used as one
    note: str = ""  # what is odd about its folder and stops nothing


BUILT_IN = (
    DatasetSpec("market1501", "Market-1501", ("market", "ma"), ("Market-1501-v15.09.15",)),
    DatasetSpec("dukemtmc", "DukeMTMC-reID", ("duke", "d"), ("DukeMTMC-reID",)),
    DatasetSpec("msmt17", "MSMT17", ("msmt", "ms"), ("MSMT17_V1",), layouts=("msmt17", "market1501_zero_based")),
    DatasetSpec("msmt17_v2", "MSMT17 V2", (), (), layouts=("msmt17", "market1501_zero_based")),
    DatasetSpec("cuhk03", "CUHK03-NP (detected)", ("c3", "cuhk03np"), ("cuhk03_detected",), variant="detected"),
    DatasetSpec("cuhk03_labeled", "CUHK03-NP (labeled)", ("c3l",), variant="labeled", beside="cuhk03"),
    DatasetSpec("cuhk02", "CUHK02", ("c2",), layouts=("cuhk02",)),
    DatasetSpec("cuhksysu", "CUHK-SYSU (crops)", ("cs", "sysu"), ("cuhksysu4reid",), ("cuhksysu", "market1501"), False),
    DatasetSpec("viper", "VIPeR", layouts=("viper",)),
    DatasetSpec("prid", "PRID2011", ("prid2011",), ("prid_2011",), layouts=("prid2011",)),
    DatasetSpec("grid", "GRID", (), ("underground_reid", "QMUL-GRID"), layouts=("grid",)),
    DatasetSpec("ilids", "i-LIDS", ("i-lids",), ("i-LIDS_Pedestrian",), layouts=("ilids",), cameras_known=False),
    DatasetSpec("3dpes", "3DPeS"),
    DatasetSpec("caviar", "CAVIAR4REID", ("caviar4reid",), ("CAVIARa",)),
    DatasetSpec("towncentre", "TownCentre"),
)

VARIANTS = frozenset(spec.variant for spec in BUILT_IN if spec.variant)


def known_datasets(data_root: Path) -> dict[str, DatasetSpec]:
    """The built-in data sets and every folder under `data_root` with a dataset.yaml, by canonical name.

    A built-in set's folder may have a dataset.yaml too; it then says in which layout that copy is.
    A folder that cannot be used stops no other: it has its `problem`, under its folder's name where it has no other.
    """
    specs = {spec.name: spec for spec in BUILT_IN}
    for folder in _folders(data_root):
        if not (spec := _spec_of(folder)):
            continue
        before = specs.get(spec.name)
        if before is None or (before.folder is None and name_key(folder.name) in _keys(before)):
            specs[spec.name] = spec
        elif spec.problem or before.folder is None:
            problem = spec.problem or _two_claim(spec.name, [str(folder), f"built-in {before.title}"])
            specs[str(folder)] = replace(spec, name=str(folder), aliases=(), problem=problem)
        else:
            specs[spec.name] = replace(before, problem=_two_claim(spec.name, [str(before.folder), str(folder)]))
    for key, owners in _owners(specs).items():
        places = [str(specs[name].folder or f"built-in {specs[name].title}") for name in owners]
        for name in owners if len(owners) > 1 else ():
            if specs[name].folder and not specs[name].problem:
                specs[name] = replace(specs[name], problem=_two_claim(key, places))
    return specs


def _spec_of(folder: Path) -> DatasetSpec | None:
    """What a folder under the data root says about itself; None when it has no dataset.yaml."""
    built_in = next((spec for spec in BUILT_IN if name_key(folder.name) in _keys(spec)), None)
    unnamed = replace(built_in or DatasetSpec(folder.name, folder.name), folder=folder)
    if reason := _why_closed(folder):
        fix = "make it readable for your user (chmod u+rx)"
        return replace(unnamed, problem=DataError(f"the folder cannot be read: {reason}", path=folder, fix=fix))
    if not _exists(folder / DESCRIPTION_FILE, os.path.lexists):
        return None
    try:
        declared = read_description(folder / DESCRIPTION_FILE)
    except ForeignDescriptionError as err:
        if built_in:
            return replace(built_in, note=f"{folder / DESCRIPTION_FILE} is ignored: {err.what}")
        return replace(unnamed, problem=err)
    except DataError as err:
        return replace(unnamed, problem=err)
    if not built_in or name_key(declared.name) not in _keys(built_in):
        built_in = DatasetSpec(declared.name, declared.title or declared.name)
    aliases = tuple(dict.fromkeys((*built_in.aliases, *(alias.lower() for alias in declared.aliases))))
    return replace(built_in, aliases=aliases, layouts=(declared.layout,), folder=folder, description=declared)


def resolve_name(text: str, data_root: Path) -> str:
    """The canonical name behind a name, alias or folder name; case and punctuation do not matter.

    Raises ConfigError for an unknown name, listing the known ones, and the problem of a set that cannot be used.
    """
    specs = known_datasets(data_root)
    name = text if text in specs else _names(specs).get(name_key(text))
    if name is None:
        raise ConfigError(
            f"unknown data set {text!r}{undescribed(text, data_root) or did_you_mean(text, _words(specs))}",
            fix=f"put a {DESCRIPTION_FILE} into its folder under {data_root} to use a set of your own; "
            f"known: {listed(specs)}",
        )
    if problem := specs[name].problem:
        raise problem
    return name


def undescribed(text: str, data_root: Path) -> str:
    """What stands under `data_root` where an unknown data set of this name would be, for a message; "" for nothing."""
    name = Path(text).name.strip(".")
    if not name or remote(data_root) or not _exists(place := data_root / name, os.path.lexists):
        return ""
    if not _exists(place, os.path.isdir):
        kind = "a link to what is not there" if _exists(place, os.path.islink) else "no folder"
    else:
        kind = "an empty folder" if _listed_in(place) == "nothing" else f"a folder without {DESCRIPTION_FILE}"
    return f" ({place} is {kind})"


def names_by_key(data_root: Path) -> dict[str, str]:
    """`name_key` of every accepted name -> canonical name."""
    return _names(known_datasets(data_root))


def name_key(text: str) -> str:
    """What is left of a name when case and punctuation are ignored: "i-LIDS" and "ilids" are one."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def listed(specs: dict[str, DatasetSpec]) -> str:
    """The names that can be used, with their aliases, for a message."""
    usable = {name: spec for name, spec in specs.items() if not spec.problem}
    return ", ".join(f"{name} ({', '.join(spec.aliases)})" if spec.aliases else name for name, spec in usable.items())


def _words(specs: dict[str, DatasetSpec]) -> list[str]:
    return [word for spec in specs.values() if not spec.problem for word in (spec.name, *spec.aliases)]


def locate(name: str, data_root: Path) -> Path:
    """The folder that the paths of a data set's manifest are relative to.

    It is the set's folder under `data_root`, or one folder below that, as some archives unpack.
    Raises ConfigError for an unknown name, DataError when it is not there (what was looked for, where, what is there).
    """
    return _find(_spec(name, data_root), data_root)[0]


def scan_dataset(name: str, data_root: Path) -> Scan:
    """Read the file names of a data set.

    Raises as `locate`, and DataError when no image of the layout is there, a split shows no person, or a part of the
    data set cannot be read.
    """
    spec = _spec(name, data_root)
    root, layout = _find(spec, data_root)
    described = spec.description
    if described and described.pattern is not None:
        scanned = pattern.scan(root, described.pattern, described.folder_splits, described.kinds)
    elif described and described.csv is not None:
        scanned = csv_table.scan(root, described.csv, described.kinds, described.encoding)
    else:
        scanned = LAYOUTS[layout].scan(root)
    fix = f"unpack the data set there, or describe its files in {root / DESCRIPTION_FILE}"
    told = "; ".join(f"{len(paths)} x {reason} ({paths[0]})" for reason, paths in scanned.skipped.items())
    if not scanned.files:
        expected = described.pattern if described and described.pattern is not None else f"the {layout} layout"
        raise DataError(
            f"no image of {spec.name} in {expected}; {told or 'the folder holds no files'}", path=root, fix=fix
        )
    found = {(record.split, record.kind == Kind.PERSON) for record in scanned.files}
    for split in sorted({split for split, _ in found} - {split for split, person in found if person}):
        images = [record.path for record in scanned.files if record.split == split]
        raise DataError(
            f"the {split} split of {spec.name} shows no person: its {len(images):,} images are all distractors or junk "
            f"(e.g. {images[0]}){'; ' + told if told else ''}",
            path=root,
            fix=fix
            if described is None
            else f"correct the identities, or `junk:` and `distractors:` in {DESCRIPTION_FILE}",
        )
    return replace(scanned, notes=(*scanned.notes, spec.note)) if spec.note else scanned


def _spec(name: str, data_root: Path) -> DatasetSpec:
    return known_datasets(data_root)[resolve_name(name, data_root)]


def _find(spec: DatasetSpec, data_root: Path) -> tuple[Path, str]:
    """(folder, layout) of a data set."""
    candidates = [spec.folder] if spec.folder else [f for f in _folders(data_root) if name_key(f.name) in _places(spec)]
    found = [hit for folder in candidates if (hit := _layout_below(folder, spec))]
    if len({folder.resolve() for folder, _ in found}) > 1:
        raise DataError(
            f"{len(found)} folders could be {spec.name}: {', '.join(str(folder) for folder, _ in found)}",
            path=data_root,
            fix="keep one of them under the data root",
        )
    if found:
        return found[0]
    wanted = " or ".join("{" + ", ".join(_marks(layout)) + "}" for layout in spec.layouts)
    if candidates:
        raise DataError(
            f"{spec.title} is not complete: looked for {wanted}, found {_listed_in(candidates[0])}",
            path=candidates[0],
            fix=f"unpack it so that {candidates[0]} holds {wanted}",
        )
    there = ", ".join(folder.name for folder in _folders(data_root)) or _listed_in(data_root)
    names = ", ".join(dict.fromkeys((spec.name, *spec.aliases, *spec.folders)))
    raise DataError(
        f"{spec.title} was not found: looked for a folder called {names} with {wanted}; there is {there}",
        path=data_root,
        fix=f"put it at {data_root / spec.name}, or point DATA_ROOT to the folder that holds your data sets",
    )


def _layout_below(folder: Path, spec: DatasetSpec) -> tuple[Path, str] | None:
    below = (folder, *_folders(folder))
    places = [place / spec.variant for place in below if spec.variant]
    if name_key(folder.name) in _keys(spec) or spec.folder:
        places += [place for place in below if place.name not in VARIANTS - {spec.variant}]
    for place in places:
        for layout in spec.layouts:
            if any(_exists(place / mark, os.path.exists) for mark in _marks(layout)):
                return place, layout
    return None


def _marks(layout: str) -> tuple[str, ...]:
    """What shows a layout; a table or a pattern is where its dataset.yaml is."""
    return LAYOUTS[layout].marks if layout in LAYOUTS else ("",)


def _exists(path: Path, look: Callable[[Path], bool]) -> bool:
    """look: os.path's function, which unlike `Path.exists` never raises."""
    there = remote(path)
    return there.exists() if there else look(path)


def _listed_in(folder: Path) -> str:
    if there := remote(folder):
        try:
            return ", ".join([path.name for path in there.iterdir()][:12]) or "nothing"
        except FileNotFoundError:
            return "no such folder"
    try:
        with os.scandir(folder) as entries:
            return ", ".join(sorted(entry.name for entry in entries)[:12]) or "nothing"
    except FileNotFoundError:
        return "no such folder"
    except OSError as err:
        return f"a folder that cannot be read ({err.strerror})"


def _folders(place: Path) -> list[Path]:
    if there := remote(place):
        return [cast(Path, folder) for folder in there.folders() if not folder.name.startswith(".")]
    try:
        with os.scandir(place) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    except OSError:  # not there or not ours to read: the caller says what it looked for
        return []
    return sorted(place / name for name in names)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """As the listing says it: a file is not asked for its status, for there may be millions."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112  (is_dir of a link raises)


def _why_closed(folder: Path) -> str:
    """Why a folder cannot be listed, "" when it can."""
    if remote(folder):
        return ""  # a store refuses all or nothing, and that is an error of its own
    try:
        with os.scandir(folder):
            return ""
    except OSError as err:
        return err.strerror or str(err)


def _keys(spec: DatasetSpec) -> set[str]:
    return {name_key(text) for text in (spec.name, *spec.aliases, *spec.folders)}


def _places(spec: DatasetSpec) -> set[str]:
    """Keys of folders in which it may lie: its own, and that of the set whose archive holds it too."""
    return _keys(spec) | {key for other in BUILT_IN if other.name == spec.beside for key in _keys(other)}


def _owners(specs: dict[str, DatasetSpec]) -> dict[str, list[str]]:
    """Key -> the canonical names of all sets that claim it; a declared one that cannot be used claims no alias."""
    built_in = {spec.name for spec in BUILT_IN}
    owners: dict[str, list[str]] = defaultdict(list)
    for name, spec in specs.items():
        for key in _keys(spec) if name in built_in or not spec.problem else {name_key(name)}:
            owners[key].append(name)
    owners.pop("", None)
    return owners


def _names(specs: dict[str, DatasetSpec]) -> dict[str, str]:
    """Key -> canonical name; where several claim a key, the one that can be used, built-in sets first."""
    return {
        key: min(names, key=lambda name: (specs[name].problem is not None, specs[name].folder is not None))
        for key, names in _owners(specs).items()
    }


def _two_claim(name: str, places: list[str]) -> ConfigError:
    return ConfigError(
        f"two data sets are called {name!r}: {' and '.join(places)}",
        fix=f"give one of them another `name:` (and `aliases:`) in its {DESCRIPTION_FILE}",
    )
