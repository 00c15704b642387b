"""Which data sets a model learns from and is tested on, written `<source>[+<source>...]2<target>[+<target>...]`.

    duke2market     market+duke+msmt2viper+grid     supervised:market1501     all-images:market+duke2viper

With `all-images:` the sources teach their query and gallery people too, as the small-set protocols do.

A cross-domain score is only one when no target image was trained on, so a data set on both sides is refused unless the
protocol says `supervised:`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reid.protocols.published_folds import Folds, read_folds
from reid.protocols.splits import EvaluationSplit, make_splits
from shared.datasets import known_datasets, listed, locate, name_key, names_by_key
from shared.errors import ConfigError, DataError
from shared.schemas import Kind, ManifestRow

__all__ = ["EvaluationSplit", "Protocol", "evaluation_splits", "parse_protocol", "training_rows"]

SUPERVISED = "supervised:"
ALL_IMAGES = "all-images:"
SAME_PEOPLE = (frozenset({"msmt17", "msmt17_v2"}),)  # two releases of one set


@dataclass(frozen=True)
class Protocol:
    """Canonical data set names. Raises ConfigError when sources and targets share people without `supervised`."""

    name: str  # as it was written, in lower case; parse_protocol reads it back
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    supervised: bool = False
    all_images: bool = False  # sources are trained on with their query and gallery images
    folds: Mapping[str, Folds] = field(default_factory=dict)  # target -> published train ids

    def __post_init__(self) -> None:
        for side in (self.sources, self.targets):
            if len(set(side)) < len(side):
                raise ConfigError(f"protocol {self.name!r} names a data set twice", fix="name each once on a side")
        if self.supervised and self.all_images:
            raise ConfigError(
                f"protocol {self.name!r} would train on its test images",
                fix=f"leave out {SUPERVISED!r} or {ALL_IMAGES!r}",
            )
        shared = sorted({t for s in self.sources for t in self.targets if _same_people(s, t)})
        if shared and not self.supervised:
            raise ConfigError(
                f"protocol {self.name!r}: {', '.join(shared)} is source and target; that is no cross-domain score",
                fix=f"name other targets, or write {SUPERVISED}{self.name} to train and test on one data set",
            )
        if self.supervised and not shared:
            raise ConfigError(
                f"protocol {self.name!r} is called supervised, but no data set is both source and target",
                fix=f"leave out {SUPERVISED!r}",
            )

    def with_target(self, target: str, data_root: Path) -> "Protocol":
        """The same training tested on one other data set (canonical name); `supervised` when a source shows its people.

        Raises ConfigError when the sources were trained on with their test images and the target is one of them.
        """
        supervised = any(_same_people(source, target) for source in self.sources)
        if supervised and self.all_images:
            raise ConfigError(f"the test images of {target} were trained on", fix="name a data set that was not")
        return replace(self, targets=(target,), supervised=supervised, folds=_published_folds((target,), data_root))

    def line(
        self,
        splits: Mapping[str, Sequence[EvaluationSplit]],
        *,
        selected_on: str,
        re_ranking: bool = False,
        without_cameras: Sequence[str] = (),
    ) -> str:
        """The line printed above every table of scores.

        Args:
            splits: of each target that was tested.
            selected_on: what chose the checkpoint; "": nothing did, it is that of the last epoch.
            re_ranking: whether distances were re-ranked.
            without_cameras: targets without camera labels, where the same-camera rule removes nothing.
        """
        removed = "same-camera images of the query's identity removed"
        if without_cameras:
            everywhere = set(without_cameras) >= {name for name in self.targets if splits.get(name)}
            removed = f"{removed} (no camera labels in {', '.join(without_cameras)})"
            removed = "no image removed: no camera labels" if everywhere else removed
        told = [f"{name} ({_told(splits[name])})" for name in self.targets if splits.get(name)]
        return " | ".join(
            [
                f"{'supervised, ' if self.supervised else ''}train {' + '.join(self.sources)}"
                f"{' (all images)' if self.all_images else ''}",
                f"test {' + '.join(told or self.targets)}",
                f"selected on {selected_on}" if selected_on else "last epoch, no model selection",
                f"single query, {removed}",
                "k-reciprocal re-ranking" if re_ranking else "no re-ranking",
            ]
        )


def parse_protocol(text: str, data_root: Path) -> Protocol:
    """Read a protocol. Names may contain digits: every "2" is tried as the separator, and one reading must remain.

    Raises ConfigError for an unknown or ambiguous text (listing the known names, or the readings) and for a data set
    on both sides, DataError for a damaged dataset.yaml or folds file under `data_root`.
    """
    name = text.strip().lower()
    supervised = name.startswith(SUPERVISED)
    all_images = ALL_IMAGES in name
    body = name.removeprefix(SUPERVISED).removeprefix(ALL_IMAGES)
    known = names_by_key(data_root)
    sides = [(body[:place], body[place + 1 :]) for place, sign in enumerate(body) if sign == "2"]
    if supervised:
        sides.append((body, body))
    resolved = {(_resolve(left, known), _resolve(right, known)) for left, right in sides}
    readings = {(sources, targets) for sources, targets in resolved if sources and targets}
    if not readings:
        raise _unknown(name, sides, data_root, known)
    if len(readings) > 1:
        told = ", or ".join(f"{' + '.join(s)} to {' + '.join(t)}" for s, t in sorted(readings))
        raise ConfigError(
            f"protocol {name!r} can be read in {len(readings)} ways: {told}",
            fix="use other aliases, or give one data set another `name:` in its dataset.yaml",
        )
    sources, targets = readings.pop()
    return Protocol(name, sources, targets, supervised, all_images, _published_folds(targets, data_root))


def training_rows(protocol: Protocol, source: str, rows: Sequence[ManifestRow]) -> list[ManifestRow]:
    """The people a source teaches: its train split if it has one, otherwise all its images.

    With `all_images` it is all images of every source. Distractors and junk are left out.

    Unreadable images stay in, with their status, so that the caller can count them.

    Raises ConfigError when the source is a target too and has no train split to keep apart from the test images.
    """
    train = [row for row in rows if row.split == "train"]
    if not train and any(_same_people(source, target) for target in protocol.targets):
        raise ConfigError(
            f"{source} has no train split of its own, so its test images would be trained on",
            fix="use it as a target of other sources",
        )
    return [row for row in (rows if protocol.all_images else train or rows) if row.kind == Kind.PERSON]


def evaluation_splits(
    protocol: Protocol, target: str, rows: Sequence[ManifestRow], *, splits: int = 10, seed: int = 0
) -> list[EvaluationSplit]:
    """Query and gallery of a target, once or several times; the scores are averaged.

    Sets with a fixed query and gallery give one split; published folds are used as they are, at most `splits`; other
    sets are drawn at random, the same for the same seed whatever the order of the rows. Unreadable images are left
    out. See reid.protocols.splits for the rules.

    Raises DataError when the target has nothing to query or to search.
    """
    return make_splits(target, rows, folds=protocol.folds.get(target, ()), count=splits, seed=seed)


def _same_people(source: str, target: str) -> bool:
    return source == target or any({source, target} <= group for group in SAME_PEOPLE)


def _resolve(side: str, known: Mapping[str, str]) -> tuple[str, ...]:
    """Canonical names of one side; empty when one of them is unknown."""
    names = [known.get(name_key(part), "") for part in side.split("+")]
    return tuple(names) if all(names) else ()


def _unknown(name: str, sides: Sequence[tuple[str, str]], data_root: Path, known: Mapping[str, str]) -> ConfigError:
    fix = f"<source>[+<source>...]2<target>[+<target>...] with known data sets: {listed(known_datasets(data_root))}"
    if not sides:
        return ConfigError(f"protocol {name!r} has no '2' between sources and targets", fix=fix)
    strangers = [
        [part for part in f"{left}+{right}".split("+") if name_key(part) not in known] for left, right in sides
    ]
    return ConfigError(f"protocol {name!r}: unknown data set {min(strangers, key=len)[0]!r}", fix=fix)


def _published_folds(targets: Sequence[str], data_root: Path) -> dict[str, Folds]:
    folds = {}
    for target in targets:
        try:
            folder = locate(target, data_root)
        except DataError:  # not on this machine: whoever reads its images will say so
            continue
        if found := read_folds(folder):
            folds[target] = found
    return folds


def _told(splits: Sequence[EvaluationSplit]) -> str:
    return splits[0].rule if len(splits) == 1 else f"mean of {len(splits)}: {splits[0].rule}"
