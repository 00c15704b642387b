"""People cut out of videos: detections of a tracker (MOT Challenge's format, or CSV), and the frames they lie in.

A frame is named by its number from 1, as in MOT files. Broken frames are named and skipped; they do not move the
numbers of later ones.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError
from shared.files import read_limited
from shared.geometry import Box, clipped
from shared.images import MAX_PIXELS, UnreadableImageError, load_image

MAX_DETECTION_BYTES = 64 * 2**20
MAX_LINE_NUMBER = 2**40  # of frames and tracks; beyond is damage
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_SIZES = ("left", "top", "width", "height")


class Detection(NamedTuple):
    """frame: from 1. number: place among the detections of its frame, from 1. box: pixels of the frame."""

    frame: int
    number: int
    track: int | None
    box: Box
    camera: str | None = None


@dataclass(frozen=True)
class Crop:
    """One detected person. pixels: RGB uint8 [H, W, 3]. time_s: since the video's start; None: not known."""

    frame: int
    number: int
    track: int | None
    box: Box
    camera: str | None
    time_s: float | None
    pixels: NDArray[np.uint8]


def read_detections(path: Path) -> list[Detection]:
    """Detections in order of frames.

    Without a header: frame, id, left, top, width, height[, ...], as in the MOT Challenge; id -1 means no track. With
    one: the columns frame, and x_min, y_min, x_max, y_max or left, top, width, height; optionally id (or track) and
    camera.

    Raises DataError for a file that cannot be read, has other columns, or a line that is not like that, which it names.
    """
    try:
        text = read_limited(path, MAX_DETECTION_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise _bad(path, getattr(err, "strerror", None) or "not text in UTF-8") from err
    reader = csv.reader(io.StringIO(text))
    found: list[tuple[int, int | None, Box, str | None]] = []
    columns: dict[str, int] | None = None
    try:
        for line in reader:
            if not any(cell.strip() for cell in line):
                continue
            if columns is None:
                columns = _columns(line, path)
                if not _is_number(line[0]):
                    continue
            found.append(_detection(line, columns, reader.line_num, path))
    except csv.Error as err:
        raise _bad(path, f"line {reader.line_num}: {err}") from err
    if not found:
        raise _bad(path, "no detections in it")
    counts: dict[int, int] = {}
    numbered = []
    for frame, track, box, camera in sorted(found, key=lambda one: one[0]):
        counts[frame] = counts.get(frame, 0) + 1
        numbered.append(Detection(frame, counts[frame], track, box, camera))
    return numbered


def read_crops(
    source: Path, detections: Iterable[Detection], *, fps: float | None = None
) -> Iterator[Crop | tuple[str, str]]:
    """The detected people of a video file or of a folder of frames, in order of frames.

    Frames in a folder are numbered by their names (000001.jpg), or by their order where names are not numbers. What
    cannot be read is a pair of its name and the reason, one per detection.

    Args:
        fps: frames per second of a folder; a video knows its own.
    Raises:
        DataError: there is no such video or folder, or it is not a video.
    """
    wanted: dict[int, list[Detection]] = {}
    for detection in detections:
        wanted.setdefault(detection.frame, []).append(detection)
    frames = _frames_of_folder(source, wanted, fps) if source.is_dir() else _frames_of_video(source, wanted)
    seen = set()
    for number, frame, time_s in frames:
        seen.add(number)
        for detection in wanted[number]:
            name = f"{source}#{number}.{detection.number}"
            yield (name, frame) if isinstance(frame, str) else _cut(name, frame, detection, time_s)
    for number in sorted(wanted.keys() - seen):
        for detection in wanted[number]:
            yield f"{source}#{number}.{detection.number}", f"there is no frame {number}"


def _cut(name: str, frame: NDArray[np.uint8], detection: Detection, time_s: float | None) -> Crop | tuple[str, str]:
    height, width = frame.shape[:2]
    inside = clipped(detection.box, width, height)
    x_min, y_min = math.floor(inside.x_min), math.floor(inside.y_min)
    x_max, y_max = math.ceil(inside.x_max), math.ceil(inside.y_max)
    if x_max <= x_min or y_max <= y_min or not detection.box.area:
        return name, "the box is empty or outside the frame"
    pixels = np.ascontiguousarray(frame[y_min:y_max, x_min:x_max])
    return Crop(detection.frame, detection.number, detection.track, detection.box, detection.camera, time_s, pixels)


Frame = tuple[int, NDArray[np.uint8] | str, float | None]  # number, pixels or why there are none, seconds


def _frames_of_folder(folder: Path, wanted: Mapping[int, object], fps: float | None) -> Iterator[Frame]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError("there are no frames here", path=folder, fix="name a folder of frames, or a video file")
    named = all(path.stem.isdecimal() and len(path.stem) < 13 for path in files)
    by_number = {int(path.stem) if named else place: path for place, path in enumerate(files, 1)}
    for number in sorted(wanted.keys() & by_number.keys()):
        time_s = (number - 1) / fps if fps else None
        try:
            yield number, np.asarray(load_image(by_number[number])), time_s
        except UnreadableImageError as err:
            yield number, err.reason, time_s


def _frames_of_video(path: Path, wanted: Mapping[int, object]) -> Iterator[Frame]:
    """Decodes from a file object, so that nothing in the video can name another file or address."""
    try:
        times = _presentation_times(path)
        with path.open("rb") as content, av.open(content, "r", metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            done: set[int] = set()
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except (av.FFmpegError, ValueError):
                    continue  # its number counts as missing
                for frame in frames:
                    number = times.get(frame.pts) if frame.pts is not None else None
                    if number is None or number in done or number not in wanted:
                        continue
                    done.add(number)
                    seconds = frame.time
                    if frame.is_corrupt:
                        yield number, "the frame is damaged", seconds
                    else:
                        pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                        yield number, pixels, seconds
                if len(done) == len(wanted):
                    break
            for number in sorted((wanted.keys() - done) & set(times.values())):
                yield number, "the frame cannot be decoded", None
    except (av.FFmpegError, OSError, IndexError, ValueError) as err:
        raise DataError(
            f"not a video that can be read ({str(err).splitlines()[0][:120]})", path=path, fix="name a video file"
        ) from err


def _presentation_times(path: Path) -> dict[int, int]:
    """Time stamp of every frame -> its number from 1 in the order of showing, read from the packets alone: a frame that
    cannot be decoded keeps its number."""
    with path.open("rb") as content, av.open(content, "r", metadata_errors="replace") as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise ValueError(f"frames of {stream.width} x {stream.height} pixels")
        found = [packet.pts for packet in container.demux(stream) if packet.size]
    stamps = {stamp for stamp in found if stamp is not None}
    if None in found:
        raise ValueError("frames without time stamps; convert it, e.g. with ffmpeg -i in -c:v libx264 out.mp4")
    return {stamp: number for number, stamp in enumerate(sorted(stamps), 1)}


def _columns(first: list[str], path: Path) -> dict[str, int]:
    """Name -> place; those of the MOT Challenge for a line of numbers."""
    if _is_number(first[0]):
        return {name: place for place, name in enumerate(("frame", "id", *_SIZES))}
    names = {name.strip().lower(): place for place, name in enumerate(first)}
    if "track" in names:
        names.setdefault("id", names["track"])
    if "frame" not in names or not (names.keys() >= set(_CORNERS) or names.keys() >= set(_SIZES)):
        raise _bad(path, f"columns {', '.join(list(names)[:12])[:200]}")
    return names


def _detection(
    line: list[str], columns: dict[str, int], number: int, path: Path
) -> tuple[int, int | None, Box, str | None]:
    try:
        frame = float(line[columns["frame"]])
        track = float(line[columns["id"]] or "-1") if "id" in columns else -1.0
        if columns.keys() >= set(_CORNERS):
            box = Box(*(float(line[columns[name]]) for name in _CORNERS))
        else:
            left, top, width, height = (float(line[columns[name]]) for name in _SIZES)
            box = Box(left, top, left + width, top + height)
    except (ValueError, IndexError) as err:
        raise _bad(path, f"line {number}: {','.join(line)[:80]!r}") from err
    if not all(map(math.isfinite, (frame, track, *box))):
        raise _bad(path, f"line {number}: a number that is not finite")
    if frame != int(frame) or track != int(track) or not 1 <= frame < MAX_LINE_NUMBER or abs(track) > MAX_LINE_NUMBER:
        raise _bad(path, f"line {number}: frame {frame:g} or id {track:g} is not a whole number of that kind")
    camera = line[columns["camera"]].strip() or None if len(line) > columns.get("camera", 2**30) else None
    return int(frame), int(track) if track >= 0 else None, box, camera


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bad(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot read the detections: {reason}",
        path=path,
        fix="give lines of frame,id,left,top,width,height, or a CSV with frame and x_min,y_min,x_max,y_max",
    )
