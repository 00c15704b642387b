"""What a similarity is worth: the probability that two images show one person, and thresholds for false accept rates.

Fitted on people of the sources that the model was not trained on, and stored in the run folder as calibration.json.
Nothing of a target is used. People of other places are still other people: how well it holds there is measured, not
promised (`measure`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter

from reid.metrics.calibration import accept_rate, balanced_weights, reliability, threshold_at
from shared.errors import DataError, UsageError
from shared.files import write_text

CALIBRATION_FILE = "calibration.json"
VERSION = 1
FALSE_ACCEPTS = ("1e-2", "1e-3", "1e-4")
MAX_PAIRS = 4_000_000
KNOTS = 200  # of a stored isotonic curve
MIN_PEOPLE = 10
Method = Literal["isotonic", "logistic"]


@dataclass(frozen=True)
class Calibration:
    """probability = a non-decreasing curve through (similarities, probabilities), constant outside, for a pair that is
    as likely to show one person as two.

    model_hash: whose similarities. thresholds: false accept rate ("1e-2", ...) -> least similarity; None where there
    were too few pairs to tell. ece, brier: of people that were left out of the fit, in turn. fitted_on: data sets.
    """

    model_hash: str
    method: Method
    similarities: tuple[float, ...]
    probabilities: tuple[float, ...]
    thresholds: dict[str, float | None]
    ece: float
    brier: float
    people: int
    images: int
    same_pairs: int
    different_pairs: int
    fitted_on: tuple[str, ...]

    def probability(self, similarity: ArrayLike, prior: float = 0.5) -> NDArray[np.float64]:
        """Probabilities in 0..1 of similarities, NaN of NaN. prior: how likely one person is before one looks.

        Raises UsageError for a prior outside 0..1.
        """
        if not 0 < prior < 1:
            raise UsageError(f"prior={prior:g} is not a probability between 0 and 1", fix="give e.g. 0.01")
        given = np.asarray(similarity, np.float64)
        even = np.interp(given, self.similarities, self.probabilities)
        odds = prior / (1 - prior)
        found: NDArray[np.float64] = even * odds / (even * odds + 1 - even)
        return found

    def threshold(self, false_accepts: str) -> float:
        """The least similarity for a false accept rate. Raises UsageError when it is not known."""
        found = self.thresholds.get(false_accepts)
        if found is None:
            known = [name for name, value in self.thresholds.items() if value is not None]
            raise UsageError(
                f"the threshold for a false accept rate of {false_accepts} is not known",
                fix=f"choose one of {', '.join(known)}; smaller ones need more held-out people"
                if known
                else "calibrate",
            )
        return found


@dataclass(frozen=True)
class Pairs:
    """Similarities [N] of pairs of images, whether they show one person, and the two people: int [N, 2]."""

    similarities: NDArray[np.float64]
    same: NDArray[np.bool_]
    people: NDArray[np.int64]


def pairs_of(
    similarities: NDArray[Any], identities: Sequence[object], cameras: Sequence[object | None], *, seed: int = 0
) -> Pairs:
    """All pairs of images from different cameras, or at least one camera unknown; a sample of those of different people
    where there are more than MAX_PAIRS. similarities [N, N], NaN where images cannot be compared: left out."""
    _, people = np.unique([str(one) for one in identities], return_inverse=True)
    _, places = np.unique([f"?{n}" if one is None else f"={one}" for n, one in enumerate(cameras)], return_inverse=True)
    first, second = np.triu_indices(len(people), 1)
    values = similarities[first, second]
    wanted = (places[first] != places[second]) & ~np.isnan(values)
    first, second, values = first[wanted], second[wanted], values[wanted]
    same = people[first] == people[second]
    chosen = np.flatnonzero(~same)
    if len(chosen) > MAX_PAIRS:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MAX_PAIRS, replace=False))
    order = np.concatenate([np.flatnonzero(same), chosen])
    both = np.stack([people[first[order]], people[second[order]]], axis=1)
    return Pairs(values[order].astype(np.float64), same[order], both)


def joined(several: Sequence[Pairs]) -> Pairs:
    """Pairs of several data sets, their people told apart."""
    shifts = np.cumsum([0, *(int(one.people.max(initial=-1)) + 1 for one in several)])
    return Pairs(
        np.concatenate([one.similarities for one in several]),
        np.concatenate([one.same for one in several]),
        np.concatenate([one.people + shift for one, shift in zip(several, shifts, strict=False)]),
    )


def fit(
    pairs: Pairs,
    method: Method = "isotonic",
    *,
    model_hash: str,
    images: int,
    fitted_on: Sequence[str],
    seed: int = 0,
) -> Calibration:
    """Fit on all pairs; ECE and Brier score are of five fits that each left out a fifth of the people.

    Raises UsageError for fewer than MIN_PEOPLE people or pairs of one kind only, DataError without scikit-learn.
    """
    people = np.unique(pairs.people)
    if len(people) < MIN_PEOPLE:
        raise UsageError(
            f"{len(people)} held-out people are too few to calibrate on (at least {MIN_PEOPLE})",
            fix="hold out more of the sources (data.validation_share=0.2), or name a data set with --data",
        )
    fold_of = np.zeros(int(people.max()) + 1, np.int64)
    fold_of[people] = np.random.default_rng(seed).permutation(len(people)) % 5
    folds = fold_of[pairs.people]
    told, truth = [], []
    for fold in range(5):
        left_out, used = (folds == fold).all(1), (folds != fold).all(1)
        if len(np.unique(pairs.same[used])) < 2:
            continue
        curve = _curve(pairs.similarities[used], pairs.same[used], method)
        told.append(np.interp(pairs.similarities[left_out], *curve))
        truth.append(pairs.same[left_out])
    quality = reliability(np.concatenate(told), np.concatenate(truth))
    knots = _curve(pairs.similarities, pairs.same, method)
    different = pairs.similarities[~pairs.same]
    return Calibration(
        model_hash,
        method,
        tuple(map(float, knots[0])),
        tuple(map(float, knots[1])),
        {name: threshold_at(different, float(name)) for name in FALSE_ACCEPTS},
        quality.ece,
        quality.brier,
        len(people),
        images,
        int(pairs.same.sum()),
        int((~pairs.same).sum()),
        tuple(fitted_on),
    )


def measure(calibration: Calibration, pairs: Pairs) -> dict[str, Any]:
    """What a calibration is worth on other people: ece, brier, and for each threshold the true false accept rate and
    the share of pairs of one person that it accepts; None where a threshold is not known."""
    quality = reliability(calibration.probability(pairs.similarities), pairs.same)
    rates: dict[str, Any] = {}
    for name, threshold in calibration.thresholds.items():
        rates[name] = (
            None
            if threshold is None
            else {
                "false_accepts": accept_rate(pairs.similarities[~pairs.same], threshold),
                "true_accepts": accept_rate(pairs.similarities[pairs.same], threshold),
            }
        )
    return {"ece": quality.ece, "brier": quality.brier, "rates": rates, "pairs": len(pairs.same)}


def write_calibration(calibration: Calibration, run_folder: Path) -> Path:
    path = run_folder / CALIBRATION_FILE
    write_text(path, json.dumps({"version": VERSION, **asdict(calibration)}, indent=1) + "\n")
    return path


def read_calibration(run_folder: Path, model_hash: str) -> Calibration | None:
    """The calibration of a run; None when there is none. Raises DataError for a damaged one or another model's."""
    path, fix = run_folder / CALIBRATION_FILE, f"dgreid calibrate --run {run_folder.name}"
    if not path.is_file():
        return None
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if given.pop("version") != VERSION:
            raise ValueError("another version")
        if given.keys() != {one.name for one in fields(Calibration)}:
            raise ValueError("other keys")
        found = TypeAdapter(Calibration).validate_python(given)
        curve = np.array([found.similarities, found.probabilities], np.float64)
        if curve.shape[1] < 1 or not np.isfinite(curve).all() or (np.diff(curve) < 0).any():
            raise ValueError("the curve is not one")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as err:
        raise DataError("not a readable calibration", path=path, fix=fix) from err
    if found.model_hash != model_hash:
        raise DataError("the calibration is of another state of the model", path=path, fix=fix)
    return found


def _curve(values: NDArray[np.float64], same: NDArray[np.bool_], method: Method) -> tuple[Any, Any]:
    try:
        from sklearn.isotonic import IsotonicRegression
        from sklearn.linear_model import LogisticRegression
    except ImportError as err:
        raise DataError("calibration needs scikit-learn", fix="pip install 'dgreid[search]'") from err
    weights = balanced_weights(same) * len(same)
    if method == "logistic":
        model = LogisticRegression(C=1e6).fit(values[:, None], same, sample_weight=weights)
        knots = np.linspace(-1, 1, KNOTS)
        return knots, model.predict_proba(knots[:, None])[:, 1]
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(values, same, sample_weight=weights)
    knots, heights = np.asarray(model.X_thresholds_), np.asarray(model.y_thresholds_)
    if len(knots) > KNOTS:
        chosen = np.unique(np.linspace(0, len(knots) - 1, KNOTS).round().astype(int))
        knots, heights = knots[chosen], heights[chosen]
    return knots, heights
