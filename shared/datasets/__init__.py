"""Public person re-identification data sets: their names, where they lie, and what their file names say.

One reader per public layout (`layouts`), and one for any folder (`pattern`) or table (`csv_table`) that a
`dataset.yaml` declares. Readers look at names only, never into images; `shared.manifest` does that.

Numbers of people and cameras are kept as they are, 0 and negative ones too; words are numbered from 1, which is said,
and kept beside their numbers. What is not a person of the data set says so in its `kind` and has no identity. An image
without a camera label has camera None: it is of no other image's camera, so nothing is removed as same-camera.
"""

from shared.datasets.catalogue import (
    DatasetSpec,
    known_datasets,
    listed,
    locate,
    name_key,
    names_by_key,
    resolve_name,
    scan_dataset,
    undescribed,
)
from shared.datasets.expected import EXPECTED, Counts, count_splits, differences
from shared.datasets.records import FileRecord, Scan

__all__ = [
    "EXPECTED",
    "Counts",
    "DatasetSpec",
    "FileRecord",
    "Scan",
    "count_splits",
    "differences",
    "known_datasets",
    "listed",
    "locate",
    "name_key",
    "names_by_key",
    "resolve_name",
    "scan_dataset",
    "undescribed",
]
