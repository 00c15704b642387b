"""Which data sets there are, what people call them, and where they lie under the data root."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shared.datasets import csv_table, cuhk02, cuhksysu, grid, ilids, market1501, msmt17, pattern, prid2011, viper
from shared.datasets.description import Description, read_description
from shared.datasets.records import DESCRIPTION_FILE, Scan
from shared.errors import ConfigError, DataError, did_you_mean


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

# Any of these below a folder shows that the layout is there. A table or a pattern is where its dataset.yaml is.
MARKS: dict[str, tuple[str, ...]] = {
    "market1501": tuple(market1501.FOLDERS),
    "market1501_zero_based": tuple(market1501.FOLDERS),
    "msmt17": tuple(msmt17.LISTS),
    "cuhk02": cuhk02.PAIRS,
    "cuhksysu": tuple(cuhksysu.FOLDERS),
    "viper": tuple(viper.FOLDERS),
    "prid2011": tuple(prid2011.FOLDERS),
    "grid": tuple(grid.FOLDERS),
    "ilids": tuple(ilids.FOLDERS),
    "pattern": ("",),
    "csv": ("",),
}
SCANS: dict[str, Callable[[Path], Scan]] = {
    "market1501": market1501.scan,
    "market1501_zero_based": market1501.scan_zero_based,
    "msmt17": msmt17.scan,
    "cuhk02": cuhk02.scan,
    "cuhksysu": cuhksysu.scan,
    "viper": viper.scan,
    "prid2011": prid2011.scan,
    "grid": grid.scan,
    "ilids": ilids.scan,
}


def known_datasets(data_root: Path) -> dict[str, DatasetSpec]:
    """The built-in data sets and every folder under `data_root` with a dataset.yaml, by canonical name.

    A built-in set's folder may have a dataset.yaml too; it then says in which layout that copy is.
    Raises DataError for a broken dataset.yaml, ConfigError when two data sets claim one name.
    """
    specs = {spec.name: spec for spec in BUILT_IN}
    for folder in _folders(data_root):
        if not (folder / DESCRIPTION_FILE).is_file():
            continue
        declared = read_description(folder / DESCRIPTION_FILE)
        own_name = name_key(declared.name) == name_key(folder.name)
        built_in = next((spec for spec in BUILT_IN if own_name and name_key(folder.name) in _keys(spec)), None)
        fresh = DatasetSpec(declared.name, declared.title or declared.name)
        spec = built_in or fresh
        if spec.name in specs and specs[spec.name].folder:
            raise _two_claim(spec.name, [str(specs[spec.name].folder), str(folder)])
        if spec is fresh and spec.name in specs:
            raise _two_claim(spec.name, [str(folder), f"built-in {specs[spec.name].title}"])
        aliases = tuple(dict.fromkeys((*spec.aliases, *(alias.lower() for alias in declared.aliases))))
        specs[spec.name] = replace(
            spec, aliases=aliases, layouts=(declared.layout,), folder=folder, description=declared
        )
    _names(specs)
    return specs


def resolve_name(text: str, data_root: Path) -> str:
    """The canonical name behind a name, alias or folder name; case and punctuation do not matter.

    Raises ConfigError for an unknown name, listing the known ones.
    """
    specs = known_datasets(data_root)
    name = _names(specs).get(name_key(text))
    if name is None:
        raise ConfigError(
            f"unknown data set {text!r}{did_you_mean(text, _words(specs))}; known: {listed(specs)}",
            fix=f"put a {DESCRIPTION_FILE} into its folder under {data_root} to use a set of your own",
        )
    return name


def names_by_key(data_root: Path) -> dict[str, str]:
    """`name_key` of every accepted name -> canonical name."""
    return _names(known_datasets(data_root))


def name_key(text: str) -> str:
    """What is left of a name when case and punctuation are ignored: "i-LIDS" and "ilids" are one."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def listed(specs: dict[str, DatasetSpec]) -> str:
    """The known names with their aliases, for a message."""
    return ", ".join(f"{name} ({', '.join(spec.aliases)})" if spec.aliases else name for name, spec in specs.items())


def _words(specs: dict[str, DatasetSpec]) -> list[str]:
    return [word for spec in specs.values() for word in (spec.name, *spec.aliases)]


def locate(name: str, data_root: Path) -> Path:
    """The folder that the paths of a data set's manifest are relative to.

    It is the set's folder under `data_root`, or one folder below that, as some archives unpack.
    Raises ConfigError for an unknown name, DataError when it is not there (what was looked for, where, what is there).
    """
    return _find(_spec(name, data_root), data_root)[0]


def scan_dataset(name: str, data_root: Path) -> Scan:
    """Read the file names of a data set. Raises as `locate`, and DataError when no image of the layout is there."""
    spec = _spec(name, data_root)
    root, layout = _find(spec, data_root)
    if spec.description and spec.description.pattern is not None:
        scanned = pattern.scan(root, spec.description.pattern, spec.description.folder_splits, spec.description.kinds)
    elif spec.description and spec.description.csv is not None:
        scanned = csv_table.scan(root, spec.description.csv, spec.description.kinds)
    else:
        scanned = SCANS[layout](root)
    if not scanned.files:
        told = "; ".join(f"{len(paths)} x {reason} ({paths[0]})" for reason, paths in scanned.skipped.items())
        raise DataError(
            f"no image of {spec.name} in the {layout} layout; {told or 'the folder holds no files'}",
            path=root,
            fix=f"unpack the data set there, or describe its files in {root / DESCRIPTION_FILE}",
        )
    return scanned


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
    wanted = " or ".join("{" + ", ".join(MARKS[layout]) + "}" for layout in spec.layouts)
    if candidates:
        there = ", ".join(sorted(p.name for p in candidates[0].iterdir())[:12]) or "nothing"
        raise DataError(
            f"{spec.title} is not complete: looked for {wanted}, found {there}",
            path=candidates[0],
            fix=f"unpack it so that {candidates[0]} holds {wanted}",
        )
    there = ", ".join(folder.name for folder in _folders(data_root)) or (
        "nothing" if data_root.is_dir() else "no such folder"
    )
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
            if any((place / mark).exists() for mark in MARKS[layout]):
                return place, layout
    return None


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # not there or not ours to read: the caller says what it looked for
        return []


def _keys(spec: DatasetSpec) -> set[str]:
    return {name_key(text) for text in (spec.name, *spec.aliases, *spec.folders)}


def _places(spec: DatasetSpec) -> set[str]:
    """Keys of folders in which it may lie: its own, and that of the set whose archive holds it too."""
    return _keys(spec) | {key for other in BUILT_IN if other.name == spec.beside for key in _keys(other)}


def _names(specs: dict[str, DatasetSpec]) -> dict[str, str]:
    """Key -> canonical name of all sets. Raises ConfigError when two claim one key."""
    owners: dict[str, str] = {}
    for spec in specs.values():
        for key in sorted(_keys(spec)):
            if key in owners:
                raise _two_claim(key, [str(specs[name].folder or name) for name in (owners[key], spec.name)])
            owners[key] = spec.name
    return owners


def _two_claim(name: str, places: list[str]) -> ConfigError:
    return ConfigError(
        f"two data sets are called {name!r}: {' and '.join(places)}",
        fix=f"give one of them another `name:` (and `aliases:`) in its {DESCRIPTION_FILE}",
    )
