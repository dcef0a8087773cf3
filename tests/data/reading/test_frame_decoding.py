"""One picture, one frame: every way to a frame gives the same pixels for the same bytes, or refuses them with a reason."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vasomim_hf.data import near_duplicates
from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.own_frames import load_frames
from vasomim_hf.data.parquet.png import encode_mask_png, encode_png
from vasomim_hf.data.parquet.read import ParquetFrames
from vasomim_hf.data.reading import Frame, ReadOptions, read_mask
from vasomim_hf.data.reading import files as frames
from vasomim_hf.data.reading.files import FrameReadError
from vasomim_hf.data.sources import BITS_COLUMN, DatasetSource
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.data.xa170k.sources import open_xa170k_source
from vasomim_hf.engine.finetuning.rows import LabelledRows
from vasomim_hf.image_processing_vasomim import VasoMIMImageProcessorPil


datasets = pytest.importorskip("datasets")

GREY = synthetic_angiogram(0, size=(48, 40)).image
DEEP = GREY.astype(np.uint16) * 4
ORIENTATION, TURNED = 274, 6


class Case(NamedTuple):
    """Bytes, their depth if stated, and the pixels or the words of the refusal."""

    data: bytes
    suffix: str
    expected: np.ndarray | str
    bits_stored: int | None = None


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    return exif


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def deep_colour(levels: np.ndarray) -> bytes:
    """PNG of 16 bits per colour channel, which Pillow cannot write."""
    height, width = levels.shape[:2]
    rows = (np.repeat(levels[..., None], 3, axis=2) if levels.ndim == 2 else levels).astype(">u2").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def stored_with_exif(at_end: bool) -> bytes:
    """The kind of PNG that is read without Pillow, but for its EXIF."""
    plain, exif = encode_png(GREY), chunk(b"eXIf", orientation().tobytes().removeprefix(b"Exif\0\0"))
    place = len(plain) - 12 if at_end else 33
    return plain[:place] + exif + plain[place:]


def raw_profile() -> bytes:
    """EXIF in text, as ImageMagick writes it."""
    exif, info = orientation().tobytes(), PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n", zip=True)
    return saved(Image.fromarray(GREY), pnginfo=info)


def palette() -> Image.Image:
    image = Image.fromarray(255 - GREY)
    image.putpalette([255 - level for level in range(256) for _ in range(3)], "RGB")
    return image


def cases() -> dict[str, Case]:
    image, ones = Image.fromarray(GREY), GREY > 127
    rgb = image.convert("RGB")
    jpeg = saved(rgb, "JPEG", quality=95)
    as_read = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"))
    turned = np.rot90(GREY, -1)
    pages = saved(image, "TIFF", save_all=True, append_images=[image])
    upright = saved(rgb, "JPEG", quality=95, exif=orientation())
    # channels that differ, so that the red one, the mean and the luma are three answers
    tint = np.stack([GREY // 3, GREY, 255 - GREY // 2], axis=-1)
    tinted, luma = Image.fromarray(tint), np.asarray(Image.fromarray(tint).convert("L"))
    tinted_jpeg = saved(tinted, "JPEG", quality=95)
    few_colours = tinted.quantize(64)
    see_through = tinted.copy()
    see_through.putalpha(Image.fromarray(GREY))
    return {
        "grey 8 bits, stored": Case(encode_png(GREY), "png", GREY),
        "grey 8 bits, compressed": Case(saved(image), "png", GREY),
        "grey 16 bits, depth inferred": Case(encode_png(DEEP), "png", np.rint(DEEP * (255 / 1023))),
        "grey 16 bits, depth stated": Case(encode_png(DEEP), "png", np.rint(DEEP * (255 / 4095)), 12),
        "grey 16 bits, too deep": Case(encode_png(DEEP), "png", "9 bits cannot hold", 9),
        "1 bit": Case(encode_mask_png(ones), "png", ones * np.uint8(255)),
        "tinted PNG": Case(saved(tinted), "png", luma),
        "tinted TIFF": Case(saved(tinted, "TIFF"), "tif", luma),
        "tinted JPEG": Case(tinted_jpeg, "jpg", np.asarray(Image.open(io.BytesIO(tinted_jpeg)).convert("L"))),
        "tinted palette": Case(saved(few_colours), "png", np.asarray(few_colours.convert("RGB").convert("L"))),
        "tinted with alpha": Case(saved(see_through), "png", luma),
        "tinted, 16 bits": Case(deep_colour(tint.astype(np.uint16) * 257), "png", luma),
        "palette": Case(saved(palette()), "png", GREY),
        "grey with alpha": Case(saved(Image.merge("LA", [image, image])), "png", GREY),
        "colour of a grey picture": Case(saved(rgb), "png", GREY),
        "JPEG in colour": Case(jpeg, "jpg", as_read),
        "JPEG to be turned": Case(upright, "jpg", np.rot90(as_read, -1)),
        "PNG to be turned": Case(stored_with_exif(at_end=False), "png", turned),
        "PNG to be turned, said at its end": Case(stored_with_exif(at_end=True), "png", turned),
        "PNG to be turned, said in text": Case(raw_profile(), "png", turned),
        "TIFF to be turned": Case(saved(image, "TIFF", tiffinfo={ORIENTATION: TURNED}), "tif", turned),
        "deep PNG to be turned": Case(
            saved(Image.fromarray(DEEP), exif=orientation()), "png", np.rint(np.rot90(DEEP, -1) * (255 / 1023))
        ),
        "colour of 16 bits": Case(deep_colour(GREY.astype(np.uint16) * 257), "png", GREY),
        "colour of 10 in 16 bits": Case(deep_colour(DEEP), "png", "16 bits per colour channel"),
        "several pages": Case(pages, "tif", "has 2 frames"),
        "white as 0, 8 bits": Case(saved(image, "TIFF", tiffinfo={262: 0}), "tif", GREY),
        "white as 0, deep": Case(saved(Image.fromarray(DEEP), "TIFF", tiffinfo={262: 0}), "tif", "white as 0"),
        "truncated, stored": Case(encode_png(GREY)[:900], "png", "cannot be read|truncated|incomplete"),
        "truncated, compressed": Case(saved(image)[:900], "png", "cannot be read|truncated"),
        "no image": Case(b"hello", "png", "cannot be read|cannot identify|no image"),
    }


CASES = cases()


def parquet(case: Case, folder: Path) -> dict[str, str]:
    """A shard with the frame and a mask."""
    row = {
        "image": {"bytes": case.data, "path": None},
        "vesselness": {"bytes": encode_mask_png(GREY > 0), "path": None},
    }
    dataset_of([row | {BITS_COLUMN: case.bits_stored}]).to_parquet(folder / "train.parquet")
    return {"train.parquet": str(folder / "train.parquet")}


def dataset_of(rows: list[dict]) -> "datasets.Dataset":
    kinds = {name: datasets.Image() for name in rows[0]} | {BITS_COLUMN: datasets.Value("int32")}
    return datasets.Dataset.from_list(rows, features=datasets.Features(kinds))


def file_of(case: Case, folder: Path) -> Path:
    path = folder / f"a.{case.suffix}"
    path.write_bytes(case.data)
    return path


def from_file(case: Case, folder: Path) -> np.ndarray:
    return frames.read_frame(file_of(case, folder), case.bits_stored)


def from_bytes(case: Case, folder: Path) -> np.ndarray:
    return frames.decode_frame(case.data, "a", case.bits_stored)


def from_frames_of_a_file(case: Case, folder: Path) -> np.ndarray:
    (frame,) = read_all(frames.read_frames(file_of(case, folder), ReadOptions(bits_stored=case.bits_stored)))
    return frames.to_uint8(frame.pixels, frame.bits_stored)


def read_all(found: Iterator[Frame]) -> list[Frame]:
    result = list(found)
    if len(result) > 1:
        raise FrameReadError(f"it has {len(result)} frames")
    return result


def from_own_files(case: Case, folder: Path) -> np.ndarray:
    file_of(case, folder)
    report = FaultReport()
    rows = load_frames(folder, options=ReadOptions(bits_stored=case.bits_stored), report=report)
    if not len(rows):
        raise FrameReadError(str([fault.text for fault in report.faults]))
    return DatasetSource(rows).frame(0) if len(rows) == 1 else read_all(iter(rows))


def from_fine_tuning_and_evaluation(case: Case, folder: Path) -> np.ndarray:
    row = {"image": {"bytes": case.data, "path": None}, BITS_COLUMN: case.bits_stored}
    return LabelledRows(dataset_of([row]), "label", "image").frame(0)


def from_image_processor(case: Case, folder: Path) -> np.ndarray:
    path = file_of(case, folder)
    options = {"bits_stored": case.bits_stored, "do_resize": False, "do_normalize": False, "do_rescale": True}
    values = VasoMIMImageProcessorPil()(str(path), return_tensors="np", **options)["pixel_values"]
    assert len(read_all(iter(values))) == 1 and (values[0] == values[0, :1]).all()
    return np.rint(values[0, 0] * 255).astype(np.uint8)


def from_xa170k(case: Case, folder: Path) -> np.ndarray:
    (folder / "dataset" / "xcad").mkdir(parents=True)
    file_of(case, folder / "dataset" / "xcad")
    source = open_xa170k_source(folder / "dataset")
    return source.read(source.items[0])


def from_parquet(case: Case, folder: Path) -> np.ndarray:
    shards = ParquetFrames(parquet(case, folder))
    frame = shards.frame(0)
    assert shards.size(0) == frame.shape
    return frame


def from_dataset(case: Case, folder: Path) -> np.ndarray:
    dataset = datasets.Dataset.from_parquet(
        str(next(iter(parquet(case, folder).values()))), cache_dir=str(folder / "cache")
    )
    return DatasetSource(dataset).frame(0)


def from_dataset_of_files(case: Case, folder: Path) -> np.ndarray:
    row = {"image": {"bytes": None, "path": str(file_of(case, folder))}, BITS_COLUMN: case.bits_stored}
    return DatasetSource(dataset_of([row])).frame(0)


def from_loaded_image(case: Case, folder: Path) -> np.ndarray:
    """A column that converts (here to the mode it has) is decoded by `datasets`."""
    row = {"image": {"bytes": case.data, "path": None}, BITS_COLUMN: case.bits_stored}
    try:
        mode = Image.open(io.BytesIO(case.data)).mode
    except OSError:
        mode = "L"
    dataset = dataset_of([row]).cast_column("image", datasets.Image(mode=mode))
    return DatasetSource(dataset).frame(0)


WAYS: list[Callable[[Case, Path], np.ndarray]] = [
    from_file,
    from_bytes,
    from_frames_of_a_file,
    from_own_files,
    from_fine_tuning_and_evaluation,
    from_image_processor,
    from_xa170k,
    from_parquet,
    from_dataset,
    from_dataset_of_files,
    from_loaded_image,
]
# What a way cannot see, and why
EXCEPTIONS = {
    # The authors' data state no depth and none can be passed: it is inferred
    (from_xa170k, "grey 16 bits, depth stated"): CASES["grey 16 bits, depth inferred"].expected,
    (from_xa170k, "grey 16 bits, too deep"): CASES["grey 16 bits, depth inferred"].expected,
    # Pillow forgets on loading that there were 16 bits per channel, and has kept the upper 8 of them
    (from_loaded_image, "colour of 10 in 16 bits"): DEEP >> 8,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_every_reader_returns_the_same_pixels_or_an_error(
    name: str, way: Callable[[Case, Path], np.ndarray], tmp_path: Path
) -> None:
    case = CASES[name]
    expected = EXCEPTIONS.get((way, name), case.expected)
    if isinstance(expected, str):
        with pytest.raises((ValueError, OSError, zlib.error), match=expected):
            way(case, tmp_path)
    else:
        frame = way(case, tmp_path)
        assert frame.dtype == np.uint8
        np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("name", CASES)
def test_near_duplicates_are_computed_from_the_same_frames(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("cv2")
    case, seen = CASES[name], []
    signature = near_duplicates.frame_signature
    monkeypatch.setattr(near_duplicates, "frame_signature", lambda frame: seen.append(frame) or signature(frame))
    images = [{"bytes": case.data, "path": None}, {"bytes": None, "path": str(file_of(case, tmp_path))}]
    rows = dataset_of([{"image": image, BITS_COLUMN: case.bits_stored} for image in images])
    if isinstance(case.expected, str):
        with pytest.raises(FrameReadError, match=case.expected):
            near_duplicates.dataset_signatures(rows)
    else:
        near_duplicates.dataset_signatures(rows, num_threads=1)
        for frame in seen:
            np.testing.assert_array_equal(frame, case.expected)
        assert len(seen) == 2


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "turned" in name])
def test_frames_of_runs_and_masks_are_turned_alike(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    (frame,) = frames.read_frames(file_of(case, tmp_path))
    assert frame.pixels.shape == (40, 48)
    np.testing.assert_array_equal(frames.to_uint8(frame.pixels, frame.bits_stored), case.expected)
    (tmp_path / "mask.png").write_bytes(saved(Image.fromarray(GREY > 127), exif=orientation()))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", (40, 48)), np.rot90(GREY > 127, -1))
