"""The real trackers, run by the Python of their environment: what they compute with an exported model, as files.

    python tools.py features TOOL MODEL IN.npz OUT.npy          features [N, F] of boxes in one frame
    python tools.py track TOOL MODEL|none CLIP.npz OUT.json     IDF1 and HOTA of a clip, with or without the model; the
                                                                tracks, as detections are given, in OUT.json.npy
    python tools.py score TRACKS.npy none CLIP.npz OUT.json     IDF1 and HOTA of such tracks

IN.npz: frame BGR uint8 [H, W, 3], boxes float [N, 4]. CLIP.npz: frames [T, H, W, 3], detections and truth, each float
[M, 6]: frame from 1, id, x_min, y_min, x_max, y_max. MODEL is an ONNX
file, for roboflow a torch.export program; deep-sort-realtime takes features, in CLIP.npz as `features` [M, F], one for
each detection.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np


def features_boxmot(model, frame, boxes):
    from boxmot.reid.core.runtime import ReID

    return np.asarray(ReID(weights=model, device="cpu").model.get_features(boxes, frame))


def features_ultralytics(model, frame, boxes):
    from ultralytics.trackers.utils.reid import ReID

    encoder = ReID(model, device="cpu")
    encoder._crop_detections = lambda img, dets: [img[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes.astype(int)]
    return np.stack(encoder(frame, boxes))  # its own enlargement of the boxes left out: the same crops are compared


def features_roboflow(model, frame, boxes):
    import supervision
    import torch

    from reid.model import ReIDModel, ReIDPreprocessing

    class Program(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.program = [torch.export.load(model).module()]  # in a list: eval() of a program is an error

        def forward(self, images):
            return self.program[0](images)

    found = ReIDModel(Program(), torch.device("cpu"), ReIDPreprocessing(input_size=(128, 64)))
    return found.extract_embeddings(supervision.Detections(xyxy=boxes), frame)


def tracks_boxmot(name):
    def run(model, clip):
        import boxmot

        given = {"BotSort": {"use_embeddings": model is not None, "use_cmc": False}, "StrongSort": {}}[name]
        tracker = getattr(boxmot, name)(reid_weights=model, device="cpu", half=False, **given)
        for number, frame in enumerate(clip.frames, 1):
            boxes = clip.detections[clip.detections[:, 0] == number][:, 2:]
            found = np.column_stack([boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes))]).astype(np.float32)
            for row in np.asarray(tracker.update(found.reshape(-1, 6), frame)):
                yield number, int(row[4]), row[:4]

    return run


def tracks_deep_sort(model, clip):
    from deep_sort_realtime.deepsort_tracker import DeepSort

    # without the model every person looks the same, so that only motion decides
    tracker = DeepSort(max_age=60, n_init=2, embedder=None, max_cosine_distance=0.35, nn_budget=50)
    for number in range(1, len(clip.frames) + 1):
        here = clip.detections[:, 0] == number
        boxes = clip.detections[here][:, 2:]
        embeds = clip.features[here] if model else np.ones((len(boxes), 4), np.float32)
        found = [([x0, y0, x1 - x0, y1 - y0], 0.9, "person") for x0, y0, x1, y1 in boxes]
        for track in tracker.update_tracks(found, embeds=list(embeds)):
            if track.is_confirmed() and track.time_since_update == 0:
                yield number, int(track.track_id), np.asarray(track.to_ltrb(orig=True), float)


def tracks_ultralytics(model, clip):
    from ultralytics.engine.results import Boxes
    from ultralytics.trackers.bot_sort import BOTSORT

    args = SimpleNamespace(
        tracker_type="botsort", track_high_thresh=0.25, track_low_thresh=0.1, new_track_thresh=0.25, track_buffer=60,
        match_thresh=0.8, fuse_score=True, gmc_method="none", proximity_thresh=0.5, appearance_thresh=0.8,
        with_reid=model is not None, model=model or "auto", device="cpu",
    )  # fmt: skip
    tracker = BOTSORT(args)
    for number, frame in enumerate(clip.frames, 1):
        boxes = clip.detections[clip.detections[:, 0] == number][:, 2:]
        rows = np.column_stack([boxes, np.full(len(boxes), 0.9), np.zeros(len(boxes))]).astype(np.float32)
        for row in tracker.update(Boxes(rows.reshape(-1, 6), frame.shape[:2]), frame):
            yield number, int(row[4]), row[:4]


FEATURES = {"boxmot": features_boxmot, "ultralytics": features_ultralytics, "roboflow": features_roboflow}
TRACKS = {
    "boxmot-botsort": tracks_boxmot("BotSort"),
    "boxmot-strongsort": tracks_boxmot("StrongSort"),
    "ultralytics": tracks_ultralytics,
    "deep-sort-realtime": tracks_deep_sort,
}


def overlap(first, second):
    """IoU [N, M]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(side[:, 2:] - side[:, :2], axis=1) for side in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-9)


def scores(truth, found, frames):
    """IDF1 by motmetrics, IDF1 and HOTA by TrackEval."""
    import motmetrics
    from trackeval.metrics import HOTA, Identity

    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    numbers = [sorted({int(row[1]) for row in side}) for side in (truth, found)]
    data = {"num_timesteps": frames, "gt_ids": [], "tracker_ids": [], "similarity_scores": []}
    for number in range(1, frames + 1):
        sides = [side[side[:, 0] == number] for side in (truth, found)]
        similarity = overlap(sides[0][:, 2:], sides[1][:, 2:])
        accumulator.update(sides[0][:, 1], sides[1][:, 1], np.where(similarity >= 0.5, 1 - similarity, np.nan))
        ids = [
            np.array([known.index(int(one)) for one in side[:, 1]], int)
            for side, known in zip(sides, numbers, strict=True)
        ]
        data["gt_ids"].append(ids[0])
        data["tracker_ids"].append(ids[1])
        data["similarity_scores"].append(similarity)
    data |= {"num_gt_ids": len(numbers[0]), "num_tracker_ids": len(numbers[1])}
    data |= {"num_gt_dets": len(truth), "num_tracker_dets": len(found)}
    host = motmetrics.metrics.create()
    told = host.compute(accumulator, metrics=["idf1", "num_switches"], name="clip")
    return {
        "idf1": float(told["idf1"].iloc[0]),
        "switches": int(told["num_switches"].iloc[0]),
        "idf1_trackeval": float(Identity().eval_sequence(data)["IDF1"]),
        "hota": float(np.mean(HOTA().eval_sequence(data)["HOTA"])),
        "tracks": len(numbers[1]),
    }


def main(job, tool, model, given, out):
    content = SimpleNamespace(**np.load(given))
    if job == "features":
        np.save(out, FEATURES[tool](model, content.frame, content.boxes))
        return
    if job == "score":
        found = np.load(tool)
    else:
        rows = [(n, i, *box) for n, i, box in TRACKS[tool](None if model == "none" else model, content)]
        found = np.array(rows, float).reshape(-1, 6)
        np.save(f"{out}.npy", found)
    Path(out).write_text(json.dumps(scores(content.truth, found, len(content.frames))))


if __name__ == "__main__":
    main(*sys.argv[1:])
