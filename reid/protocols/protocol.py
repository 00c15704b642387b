"""Which data sets a model learns from and is tested on, written `<source>[+<source>...]2<target>[+<target>...]`.

    duke2market     market+duke+msmt2viper+grid     supervised:market1501     all-images:market+duke2viper

With `all-images:` the query and gallery images of the sources are trained on too, as the small-set protocols do.

A score is cross-domain only if no image and no person of a target was trained on. Two sets of the same people on both
sides are therefore refused unless the protocol says `supervised:`, and so are targets that the weights were pretrained
on, unless that is allowed; the protocol line then says it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.protocols.splits import EvaluationSplit, Folds, make_splits, read_folds
from shared.datasets import known_datasets, listed, locate, name_key, names_by_key, undescribed
from shared.errors import ConfigError, UsageError, did_you_mean
from shared.schemas import Kind, ManifestRow

__all__ = ["EvaluationSplit", "Protocol", "evaluation_splits", "parse_protocol", "shared_images", "training_rows"]

SUPERVISED = "supervised:"
ALL_IMAGES = "all-images:"
# Data sets of the same people, by what their authors publish; as `name_key` gives them, also those that a user declares
# under such a name. CUHK02, CUHK03 and CUHK-SYSU are not among them: the first two come from one campus and the third
# from streets of the same city and films, no shared identity is published, and the small-set protocols treat them as
# three sets. A copy under a name of its own is found by its image ids, see `shared_images`.
SAME_PEOPLE = (
    frozenset({"cuhk02", "cuhk01"}),  # CUHK01 is the first camera pair of CUHK02
    frozenset({"market1501", "mars"}),  # MARS is the video extension of Market-1501
    frozenset({"dukemtmc", "occludedduke", "pdukemtmc"}),
)
# A name that begins so is taken for another form of the same set: MSMT17 V2 blurs the faces of V1, CUHK03 comes with
# detected and with hand-drawn person boxes, and all four with attributes, occluders, corruptions or more distractors.
FAMILIES = ("market1501", "msmt17", "cuhk03", "dukemtmc", "occludedduke", "pdukemtmc")


@dataclass(frozen=True)
class Protocol:
    """Canonical data set names.

    Raises ConfigError when sources and targets share people without `supervised`, or when the weights were pretrained
    on people of a target without `allow_pretrained_targets`.
    """

    name: str  # as it was written, in lower case; parse_protocol reads it back
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    supervised: bool = False
    all_images: bool = False  # sources are trained on with their query and gallery images
    folds: Mapping[str, Folds] = field(default_factory=dict)  # target -> published train ids
    pretrained_on: tuple[str, ...] = ()  # data sets whose people the weights were trained on
    allow_pretrained_targets: bool = False

    @property
    def pretrained_targets(self) -> tuple[str, ...]:
        """The targets whose people the weights were trained on."""
        return tuple(t for t in self.targets if any(_same_people(t, name) for name in self.pretrained_on))

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
                f"protocol {self.name!r}: {_overlap(self.sources, shared)}; that would not be a cross-domain score",
                fix=f"name other targets, or write {SUPERVISED}{self.name} for a supervised score",
            )
        if self.pretrained_targets and not (self.supervised or self.allow_pretrained_targets):
            raise ConfigError(
                f"protocol {self.name!r}: the weights were pretrained on people of "
                f"{', '.join(self.pretrained_targets)}; that would not be a cross-domain score",
                fix="name other targets, start from other weights (model.weights_file, or another preset), or set "
                "allow_pretrained_targets=true: the protocol line then says so",
            )
        if self.supervised and not shared:
            raise ConfigError(
                f"protocol {self.name!r} is called supervised, but no data set is both source and target",
                fix=f"leave out {SUPERVISED!r}",
            )

    def with_target(self, target: str, data_root: Path) -> "Protocol":
        """The same training tested on one other data set (canonical name); `supervised` when a source shows its people.

        Raises ConfigError when the sources were trained on with their test images and the target is one of them, or
        as the class itself.
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
        trained_on: Mapping[str, int] | None = None,
        without_cameras: Sequence[str] = (),
    ) -> str:
        """The line printed above every table of scores.

        Args:
            splits: of each target that was tested.
            selected_on: how the checkpoint was selected, e.g. "last epoch, no model selection".
            re_ranking: whether distances were re-ranked.
            trained_on: target -> how many of its test images were trained on; named where it is not 0.
            without_cameras: targets without camera labels, where the same-camera rule removes nothing.
        """
        removed = "same-camera images of the query's identity removed"
        if without_cameras:
            everywhere = set(without_cameras) >= {name for name in self.targets if splits.get(name)}
            removed = f"{removed} (no camera labels in {', '.join(without_cameras)})"
            removed = "no image removed: no camera labels" if everywhere else removed
        tests = [f"{name} ({_rule(splits[name])})" for name in self.targets if splits.get(name)]
        return " | ".join(
            [
                f"{'supervised, ' if self.supervised else ''}train {' + '.join(self.sources)}"
                f"{' (all images)' if self.all_images else ''}",
                f"test {' + '.join(tests or self.targets)}",
                selected_on,
                f"single query, {removed}",
                "k-reciprocal re-ranking" if re_ranking else "no re-ranking",
                *(f"weights pretrained on people of {name}" for name in self.pretrained_targets),
                *(f"{n:,} test images of {name} were trained on" for name, n in (trained_on or {}).items() if n),
            ]
        )


def parse_protocol(
    text: str,
    data_root: Path,
    *,
    pretrained_on: Sequence[str] = (),
    allow_pretrained_targets: bool = False,
    finished: bool = False,
) -> Protocol:
    """Read a protocol. Names may contain digits: every "2" is tried as the separator, and one reading must remain.

    Args:
        pretrained_on: data sets that the weights were trained on, from `model.pretrained_on` of the configuration, by
            any of their names.
        allow_pretrained_targets: mark them as targets instead of refusing them, as for the scores of a finished run.
        finished: it was trained. Names whose data sets are not here any more are taken as they are written, in the
            reading with the fewest of them.
    Raises:
        ConfigError: an unknown or ambiguous text (listing the known names, or the readings), or what Protocol refuses.
        DataError: a damaged dataset.yaml or folds file under `data_root`.
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
    if finished and not readings:
        readings = _with_absent(sides, known)
    if not readings:
        raise _unknown(name, sides, data_root, known)
    if len(readings) > 1:
        listed_readings = ", or ".join(f"{' + '.join(s)} to {' + '.join(t)}" for s, t in sorted(readings))
        raise ConfigError(
            f"protocol {name!r} can be read in {len(readings)} ways: {listed_readings}",
            fix="use other aliases, or give one data set another `name:` in its dataset.yaml",
        )
    sources, targets = readings.pop()
    return Protocol(
        name,
        sources,
        targets,
        supervised,
        all_images,
        _published_folds(targets, data_root),
        tuple(known.get(name_key(one), one) for one in pretrained_on),
        allow_pretrained_targets,
    )


def training_rows(protocol: Protocol, source: str, rows: Sequence[ManifestRow]) -> list[ManifestRow]:
    """The images of a source that are trained on: its train split if it has one, otherwise all of them.

    With `all_images` it is all images of every source. Distractors and junk are left out.

    Unreadable images stay in, with their status, so that the caller can count them.

    Raises ConfigError when the source is a target too and has no train split to keep apart from the test images.
    """
    train = np.array([row.split == "train" for row in rows], bool)
    people = np.array([row.kind == Kind.PERSON for row in rows], bool)
    trained = trained_on(protocol, source, train, people)
    return [row for row, wanted in zip(rows, trained.tolist(), strict=True) if wanted]


def trained_on(
    protocol: Protocol, source: str, train: NDArray[np.bool_], people: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """`training_rows` in columns: which of a source's images are trained on, bool [N]. Raises as it.

    train: bool [N], the image is of the train split. people: bool [N], it shows somebody with an identity.
    """
    if not train.any() and any(_same_people(source, target) for target in protocol.targets):
        raise ConfigError(
            f"{source} has no train split of its own, so its test images would be trained on",
            fix="use it as a target of other sources",
        )
    found: NDArray[np.bool_] = people & (train | (protocol.all_images or not train.any()))
    return found


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


def shared_images(trained_on: Collection[str], rows: Sequence[ManifestRow]) -> list[ManifestRow]:
    """The query and gallery images whose bytes were trained on; trained_on: image ids, best as a set.

    Distractors and junk do not count: no score is about them.
    """
    tested = (row for row in rows if row.split != "train" and row.kind == Kind.PERSON)
    return [row for row in tested if row.image_id in trained_on]


def _same_people(source: str, target: str) -> bool:
    keys = {_family(source), _family(target)}
    return len(keys) == 1 or any(keys <= group for group in SAME_PEOPLE)


def _family(name: str) -> str:
    key = name_key(name)
    return next((family for family in FAMILIES if key.startswith(family)), key)


def _overlap(sources: Sequence[str], shared: Sequence[str]) -> str:
    """Which source shows the people of which target."""
    pairs = [(source, target) for target in shared for source in sources if _same_people(source, target)]
    return "; ".join(f"{t} is source and target" if s == t else f"{s} and {t} show the same people" for s, t in pairs)


def _resolve(side: str, known: Mapping[str, str]) -> tuple[str, ...]:
    """Canonical names of one side; empty when one of them is unknown."""
    names = [known.get(name_key(part), "") for part in side.split("+")]
    return tuple(names) if all(names) else ()


def _with_absent(
    sides: Sequence[tuple[str, str]], known: Mapping[str, str]
) -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The readings (sources, targets) with the fewest unknown names, which stand as they are written."""
    by_absent: dict[int, set[tuple[tuple[str, ...], tuple[str, ...]]]] = {}
    for left, right in sides:
        parts = [part.strip() for part in f"{left}+{right}".split("+")]
        if all(name_key(part) for part in parts):
            absent = sum(name_key(part) not in known for part in parts)
            named = tuple(known.get(name_key(part), part) for part in parts)
            count = left.count("+") + 1
            by_absent.setdefault(absent, set()).add((named[:count], named[count:]))
    return by_absent[min(by_absent)] if by_absent else set()


def _unknown(name: str, sides: Sequence[tuple[str, str]], data_root: Path, known: Mapping[str, str]) -> ConfigError:
    fix = f"<source>[+<source>...]2<target>[+<target>...] with known data sets: {listed(known_datasets(data_root))}"
    if not sides:
        return ConfigError(f"protocol {name!r} has no '2' between sources and targets", fix=fix)
    strangers = [
        [part for part in f"{left}+{right}".split("+") if name_key(part) not in known] for left, right in sides
    ]
    stranger = min(strangers, key=len)[0]
    near = undescribed(stranger, data_root) or did_you_mean(stranger, {*known, *known.values()})
    return ConfigError(f"protocol {name!r}: unknown data set {stranger!r}{near}", fix=fix)


def _published_folds(targets: Sequence[str], data_root: Path) -> dict[str, Folds]:
    folds = {}
    for target in targets:
        try:
            folder = locate(target, data_root)
        except UsageError:  # not on this machine: reading its images will fail with the remedy
            continue
        if found := read_folds(folder):
            folds[target] = found
    return folds


def _rule(splits: Sequence[EvaluationSplit]) -> str:
    return splits[0].rule if len(splits) == 1 else f"mean of {len(splits)}: {splits[0].rule}"
