"""Crops of a video are those of its frames; broken frames and boxes are named and move nothing."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from reid.inference.embed_files import embed_crops
from reid.inference.embeddings import EmbeddingStore
from reid.inference.encoder import PersonEncoder
from reid.inference.video import Crop, read_crops, read_detections
from shared.errors import DataError

SIZE = (96, 64)


def shade(number: int) -> int:
    return 20 + 18 * number


def write_video(path: Path, frames: int = 12) -> None:
    """Grey frames whose shade tells their number; every frame a key frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *SIZE, "yuv420p", 1
        for number in range(1, frames + 1):
            pixels = np.full((SIZE[1], SIZE[0], 3), shade(number), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def numbers(crops: list[Crop | tuple[str, str]]) -> list[int]:
    """The frame that each crop's pixels show."""
    return [round((float(crop.pixels.mean()) - 20) / 18) for crop in crops if isinstance(crop, Crop)]


def detections(path: Path, lines: str) -> Path:
    path.write_text(lines)
    return path


def test_mot_lines_and_csv_say_the_same(tmp_path: Path) -> None:
    mot = read_detections(
        detections(tmp_path / "a.txt", "2,7,10,20,30,40,0.9,-1,-1,-1\n1,-1,1.5,2,3,4,1\n\n2,8,0,0,5,5\n")
    )
    assert [(one.frame, one.number, one.track, tuple(one.box)) for one in mot] == [
        (1, 1, None, (1.5, 2, 4.5, 6)),
        (2, 1, 7, (10, 20, 40, 60)),
        (2, 2, 8, (0, 0, 5, 5)),
    ]
    text = "\ufeffframe,id,x_min,y_min,x_max,y_max,camera\n1,,1.5,2,4.5,6,\n2,7,10,20,40,60,door\n2,8,0,0,5,5,door\n"
    table = read_detections(detections(tmp_path / "b.csv", text))
    assert [one[:4] for one in table] == [one[:4] for one in mot]
    assert [one.camera for one in table] == [None, "door", "door"]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("", "no detections"),
        ("1,2,3\n", "line 1"),
        ("1,2,3,4,5,6\n1,2,x,4,5,6\n", "line 2"),
        ("1,2,nan,4,5,6\n", "not finite"),
        ("0,2,3,4,5,6\n", "frame 0"),
        ("1.5,2,3,4,5,6\n", "frame 1.5"),
        ("1e99,2,3,4,5,6\n", "1e.99"),
        ("frame,who\n1,2\n", "columns frame, who"),
        ("a\0b\n", "columns"),
    ],
)
def test_lines_that_are_no_detections_are_named(tmp_path: Path, lines: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_detections(detections(tmp_path / "x.txt", lines))
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_detections(tmp_path / "x.txt")


def test_crops_are_cut_from_the_named_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4")
    found = read_detections(
        detections(
            tmp_path / "d.txt",
            "9,1,10,10,20,30\n3,1,10,10,20,30\n3,2,-5,-5,20,30\n4,3,200,0,5,5\n5,3,9,9,0,5\n99,1,1,1,9,9\n",
        )
    )
    crops = list(read_crops(tmp_path / "clip.mp4", found))
    assert numbers(crops) == [3, 3, 9]
    good = [crop for crop in crops if isinstance(crop, Crop)]
    assert [crop.pixels.shape for crop in good] == [(30, 20, 3), (25, 15, 3), (30, 20, 3)]
    assert [crop.time_s for crop in good] == pytest.approx([0.2, 0.2, 0.8])
    assert {name.rpartition("#")[2]: why for name, why in (one for one in crops if not isinstance(one, Crop))} == {
        "4.1": "the box is empty or outside the frame",
        "5.1": "the box is empty or outside the frame",
        "99.1": "there is no frame 99",
    }


def test_a_folder_of_frames(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number in (2, 5, 10):
        Image.new("RGB", SIZE, (shade(number),) * 3).save(tmp_path / "frames" / f"{number:06d}.png")
    (tmp_path / "frames" / "000005.png").write_bytes(b"broken")
    found = read_detections(detections(tmp_path / "d.txt", "".join(f"{n},1,0,0,20,40\n" for n in (2, 5, 7, 10))))
    crops = list(read_crops(tmp_path / "frames", found, fps=5))
    assert numbers(crops) == [2, 10]
    assert [crop.time_s for crop in crops if isinstance(crop, Crop)] == pytest.approx([0.2, 1.8])
    told = [one for one in crops if not isinstance(one, Crop)]
    assert [name.rpartition("#")[2] for name, _ in told] == ["5.1", "7.1"]
    for path in (tmp_path / "frames").iterdir():
        path.rename(path.with_stem(f"frame_{path.stem}"))  # no numbers: by their order
    assert numbers(list(read_crops(tmp_path / "frames", found[:1]))) == []  # the second is broken
    with pytest.raises(DataError, match="no frames"):
        list(read_crops(tmp_path, found))


def test_a_damaged_video_names_its_frames_and_keeps_the_numbers_of_the_others(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    for place, size in packets[4:6]:
        content[place : place + size] = bytes(size)
    (tmp_path / "clip.mp4").write_bytes(content)
    found = read_detections(detections(tmp_path / "d.txt", "".join(f"{n},1,0,0,20,40\n" for n in range(1, 13))))
    crops = list(read_crops(tmp_path / "clip.mp4", found))
    assert numbers(crops) == [1, 2, 3, 4, 7, 8, 9, 10, 11, 12]
    assert [name.rpartition("#")[2] for name, _ in (one for one in crops if not isinstance(one, Crop))] == [
        "5.1",
        "6.1",
    ]


@pytest.mark.parametrize(
    "content", [b"", b"no video", b"#EXTM3U\nfile:///etc/passwd\n", b"\x00\x00\x00\x20ftypisom" + b"\0" * 60]
)
def test_what_is_no_video_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    found = read_detections(detections(tmp_path / "d.txt", "1,1,0,0,9,9\n"))
    with pytest.raises(DataError, match="not a video"):
        list(read_crops(tmp_path / "clip.mp4", found))
    with pytest.raises(DataError, match="not a video"):
        list(read_crops(tmp_path / "gone.mp4", found))


def test_detections_are_embedded_once(small_encoder: PersonEncoder, tmp_path: Path) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    write_video(clip)
    found = read_detections(detections(tmp_path / "d.txt", "3,7,10,10,20,30\n9,8,10,10,20,30\n50,1,0,0,9,9\n"))
    crops = list(read_crops(clip, found))
    summary = embed_crops(crops, len(found), clip, small_encoder, out, camera="door")
    assert (summary.embedded, len(summary.unreadable)) == (2, 1)
    store = EmbeddingStore(out)
    assert store.facts.select(["frame", "track", "camera", "path"]).to_pylist() == [
        {"frame": 3, "track": 7, "camera": "door", "path": "clip.mp4"},
        {"frame": 9, "track": 8, "camera": "door", "path": "clip.mp4"},
    ]
    pixels = [crop.pixels for crop in crops if isinstance(crop, Crop)]
    np.testing.assert_allclose(store.features()[0], small_encoder(pixels), atol=1e-3)
    assert embed_crops(crops, len(found), clip, small_encoder, out).unchanged == 2
