"""What to evaluate, on what and how: the flags of `vasomim evaluate`."""

from dataclasses import dataclass

from ..keys import REQUIRED, key


@dataclass(frozen=True)
class EvaluationRequest:
    """Model, data and options of an evaluation; `vasomim evaluate` has a flag for each field."""

    model: str = key(REQUIRED, "folder or Hub id of a model with a head and its image processor")
    data: str = key(REQUIRED, "folder of the data set; for a table also hf://datasets/OWNER/NAME")
    task: str = key(REQUIRED, "task of the data set, such as vessel or stenosis_boxes; any name for a table")
    split: str = key(
        REQUIRED, "train, val or test, several as train+val; all where the data set has no published splits"
    )
    dataset: str = key(
        "arcade",
        "arcade, cadica, xcad, xcav, dca1, danilov, or table for frames and labels as Parquet or saved by `datasets`",
    )
    image_column: str | None = key(None, "for a table: column of the frames (default: image)")
    mask_column: str | None = key(None, "for a table: column of the masks (default: mask)")
    objects_column: str | None = key(None, "for a table: column of the boxes (default: objects)")
    label_column: str | None = key(None, "for a table: column of the classes (default: label)")
    ignore_white: bool = key(False, "for a table with two-class masks: 255 marks pixels to ignore")
    max_frames: int | None = key(None, "evaluate only the first frames, for a trial")
    image_size: int | None = key(None, "input side of the model in pixels (default: that of its image processor)")
    mixed_precision: str = key("auto", "auto (bf16 where the device is fast at it), no, bf16 or fp16")
    batch_size: int = key(4, "frames or windows per batch")
    num_threads: int | None = key(None, "CPU threads (default: chosen by torch)")
    tta: str = key(
        "none",
        "test-time augmentation: none, flips (not if labels depend on left and right) or scales; predictions are averaged",
    )
    sliding_window: int | None = key(
        None, "side in pixels of sliding windows with blending (default: predict whole frames)"
    )
    overlap: float = key(0.5, "overlap of the windows, in [0, 1)")
    frame_size: int | None = key(None, "with windows: resize the longer side of frames to this many pixels first")
    name: str | None = key(None, "name of the model in the results (default: that of its folder, or of its run)")
    output: str | None = key(None, "JSON file of the results, with a row for each frame")
    maps: str | None = key(
        None,
        "folder for predicted masks (class ids, shown in colours) and uncertainty maps (0 certain, 255 uniform over the "
        "classes), named by frame id, for a table by its column image_id",
    )
    pictures: str | None = key(None, "folder for pictures of the best, median and worst frames")

    @property
    def columns(self) -> dict[str, str]:
        """Columns named for a table, by field name."""
        names = ("image_column", "mask_column", "objects_column", "label_column")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
