"""splits/<target>.json in a run folder: which images asked and which were searched, so that a score can be repeated.

A run that is scored again uses the splits it was scored on before, as long as all their images are there.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from reid.protocols.splits import FIXED, EvaluationSplit
from shared.errors import DataError
from shared.files import write_text
from shared.schemas import ImageStatus, ManifestRow


def stored_splits(
    run_folder: Path, target: str, rows: Sequence[ManifestRow], drawn: Sequence[EvaluationSplit]
) -> list[EvaluationSplit]:
    """The splits stored in the run folder; `drawn` when none are, or when query and gallery are fixed.

    Raises DataError when the file is damaged or names images that the manifest does not have.
    """
    path = _path(run_folder, target)
    return _read(path, rows) if drawn[0].rule != FIXED and path.is_file() else list(drawn)


def store_splits(run_folder: Path, target: str, splits: Sequence[EvaluationSplit], *, seed: int) -> None:
    """Write the splits; of a fixed query and gallery, which the manifest has, only the sizes."""
    content = {"target": target, "rule": splits[0].rule, "seed": seed, "splits": [_described(one) for one in splits]}
    write_text(_path(run_folder, target), json.dumps(content, indent=1) + "\n")


def _path(run_folder: Path, target: str) -> Path:
    return run_folder / "splits" / f"{target}.json"


def _described(split: EvaluationSplit) -> dict[str, object]:
    if split.rule == FIXED:
        return {"query_images": len(split.query), "gallery_images": len(split.gallery)}
    return {"query": [row.path for row in split.query], "gallery": [row.path for row in split.gallery]}


def _read(path: Path, rows: Sequence[ManifestRow]) -> list[EvaluationSplit]:
    fix = "delete this file to draw the splits anew; the scores will then be of other splits"
    there = {(row.split, row.path): row for row in rows if row.status == ImageStatus.OK}
    loose = {row.path: row for row in rows if row.split == "all" and row.status == ImageStatus.OK}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            EvaluationSplit(
                tuple(there.get(("query", name)) or loose[name] for name in split["query"]),
                tuple(there.get(("gallery", name)) or loose[name] for name in split["gallery"]),
                str(content["rule"]),
            )
            for split in content["splits"]
        ]
    except KeyError as err:
        raise DataError(f"{err} of the stored splits is not in the manifest", path=path, fix=fix) from err
    except (OSError, ValueError, TypeError, AttributeError) as err:
        raise DataError(f"damaged list of splits ({type(err).__name__}: {err})", path=path, fix=fix) from err
