"""The contracts between the stages: manifest rows and label rows, as types and as Arrow schemas; the part vocabulary is
that of shared.parts."""

import enum
from datetime import datetime
from typing import Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.parts import PART_WORDS as PART_WORDS
from shared.parts import PARTS as PARTS

MANIFEST_VERSION = 3  # before 3, identity 0 and -1 and camera 0 had meanings of their own
LABEL_VERSION = 2

Split = Literal["train", "query", "gallery", "all"]


class Kind(enum.StrEnum):
    """What an image shows, as far as scores and training are concerned."""

    PERSON = "person"  # somebody with an identity
    DISTRACTOR = "distractor"  # right for nobody: kept in the gallery, never a query, never trained on
    JUNK = "junk"  # neither right nor wrong: dropped before ranking, never trained on


class ImageStatus(enum.StrEnum):
    OK = "ok"
    UNREADABLE = "unreadable"  # the file exists but no image could be decoded from it


class LabelStatus(enum.StrEnum):
    """How one (image, part) question ended. Only OK rows carry a box."""

    OK = "ok"
    ABSENT = "absent"  # the engine looked and says that the part is not visible
    REFUSED = "refused"  # the engine declined to answer
    TRUNCATED = "truncated"  # the answer was cut at the token limit
    UNPARSEABLE = "unparseable"  # an answer without a readable box
    INVALID_BOX = "invalid_box"  # a box that no calibration rule could correct
    ENGINE_ERROR = "engine_error"  # no answer: transport or server failure after all retries
    UNREADABLE = "unreadable"  # no image could be decoded from the file


FINAL_STATUSES = frozenset({LabelStatus.OK, LabelStatus.ABSENT})  # everything else may be retried


class ManifestRow(BaseModel):
    """One file of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    split: Split
    path: str  # relative to the data set's folder, POSIX
    image_id: str = Field(min_length=16, max_length=16)  # first 16 hex digits of the file's SHA-256
    width: int  # pixels; 0 when unreadable
    height: int
    kind: Kind = Kind.PERSON
    identity: int | None  # any number, unique within the data set; None: no person, see `kind`
    camera: int | None  # any number; None: the data set does not say
    identity_name: str | None = None  # as the data set calls them, where the numbers are ours; None: as numbered
    camera_name: str | None = None
    status: ImageStatus = ImageStatus.OK
    reason: str = ""  # why the file is unreadable
    size_bytes: int  # with modified_ns: lets a later scan skip files that did not change
    modified_ns: int

    @model_validator(mode="after")
    def _only_people_have_an_identity(self) -> Self:
        if (self.identity is None) == (self.kind == Kind.PERSON):
            raise ValueError(f"{self.path}: a {self.kind} with identity {self.identity}")
        return self

    @property
    def person(self) -> int:
        """Whose image it is. Raises ValueError for a distractor or junk."""
        if self.identity is None:
            raise ValueError(f"{self.path} is a {self.kind}, not a person")
        return self.identity


class LabelRow(BaseModel):
    """One part of one image in one label run. Boxes are in pixels of the original image, maxima exclusive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label_run: str
    dataset: str
    split: Split
    path: str
    image_id: str = Field(min_length=16, max_length=16)
    width: int
    height: int
    part: str
    x_min: float | None = None
    y_min: float | None = None
    x_max: float | None = None
    y_max: float | None = None
    status: LabelStatus
    score: float | None = Field(default=None, ge=0, le=1)  # None: the engine gives no confidence
    agreement: float | None = Field(default=None, ge=0, le=1)  # IoU with the answer about the mirrored image, if asked
    flags: tuple[str, ...] = ()  # what calibration or the engine did to this row, countable in SQL
    raw_box: tuple[float, ...] | None = None  # as answered, in `space`
    raw_text: str | None = None  # the answer that gave no box, at most RAW_TEXT_LIMIT characters
    space: str  # the coordinate space of raw_box, e.g. "original_pixels"
    engine: str
    model: str
    prompt_version: str
    attempts: int = Field(ge=0)  # questions asked until this answer; 0 when none could be asked
    created_at: datetime  # UTC


RAW_TEXT_LIMIT = 2000

_IMAGE_FIELDS = [  # in both: they join labels with the manifest
    pa.field("dataset", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("path", pa.string(), nullable=False),
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
]

MANIFEST_SCHEMA = pa.schema(
    [
        *_IMAGE_FIELDS,
        pa.field("kind", pa.string(), nullable=False),
        pa.field("identity", pa.int64()),
        pa.field("camera", pa.int32()),
        pa.field("identity_name", pa.string()),
        pa.field("camera_name", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("modified_ns", pa.int64(), nullable=False),
    ],
    metadata={"dgreid.schema": "manifest", "dgreid.version": str(MANIFEST_VERSION)},
)

LABEL_SCHEMA = pa.schema(
    [
        pa.field("label_run", pa.string(), nullable=False),
        *_IMAGE_FIELDS,
        pa.field("part", pa.string(), nullable=False),
        pa.field("x_min", pa.float64()),
        pa.field("y_min", pa.float64()),
        pa.field("x_max", pa.float64()),
        pa.field("y_max", pa.float64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("agreement", pa.float64()),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("raw_box", pa.list_(pa.float64())),
        pa.field("raw_text", pa.string()),
        pa.field("space", pa.string(), nullable=False),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("prompt_version", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ],
    metadata={"dgreid.schema": "labels", "dgreid.version": str(LABEL_VERSION)},
)
