"""Miniatures of XA-170K in each layout that it comes in, drawn by the synthetic generator.

Every writer returns the frames that a reader has to find: pixels by `FrameItem.name`.
"""

import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from vasomim_hf.data.parquet.png import encode_mask_png, encode_png
from vasomim_hf.data.synthetic.angiogram import SyntheticAngiogram, synthetic_angiogram


SIZE = 64
COUNTS = {"cadica": 3, "syntax": 2, "xcad": 2, "coronarydominance": 4}


@lru_cache(maxsize=256)
def drawn(seed: int) -> SyntheticAngiogram:
    return synthetic_angiogram(seed, size=SIZE)


def frame(seed: int) -> np.ndarray:
    """Frame of shape `(SIZE, SIZE)`, `uint8`; another one for each seed."""
    return drawn(seed).image


def authors_files(counts: dict[str, int] | None = None, masks: str | None = None) -> dict[str, bytes]:
    """Files of the authors' layout by path below `dataset/`; `masks` is `"frangi"` or `"filter_92"`."""
    files, seed = {}, 0
    for source, count in (counts or COUNTS).items():
        for number in range(count):
            files[f"{source}/{_flat_name(source, number)}"] = encode_png(frame(seed))
            if masks is not None:
                mask = encode_mask_png(drawn(seed).vessel_mask)
                files[f"{source}_{masks}/{_flat_name(source, number)}"] = mask
            seed += 1
    return files


def authors_frames(counts: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """What a reader has to find in the authors' layout."""
    places = [(source, number) for source, count in (counts or COUNTS).items() for number in range(count)]
    return {f"{source}/{_flat_name(source, number)}": frame(seed) for seed, (source, number) in enumerate(places)}


def _flat_name(source: str, number: int) -> str:
    return f"p1_v{number // 2 + 1}_{number + 10:05d}.png" if source == "cadica" else f"{number + 1}.png"


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def write_zip(path: Path, files: dict[str, bytes], prefix: str = "dataset/") -> Path:
    """A zip in the order of the files, deflated, as `zip -r` makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(prefix + name, (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path


def write_authors_folder(root: Path, counts: dict[str, int] | None = None, masks: str | None = None) -> dict:
    """The authors' zip, unpacked."""
    write_files(root / "dataset", authors_files(counts, masks))
    return authors_frames(counts)


def write_authors_zip(path: Path, counts: dict[str, int] | None = None, masks: str | None = None) -> dict:
    """`xa170k.zip` of the authors."""
    write_zip(path, authors_files(counts, masks))
    return authors_frames(counts)


def write_cadica(root: Path, every_frame: bool = False) -> dict[str, np.ndarray]:
    """CADICA's tree in the folder `root`: two selected videos and one that was not, of two patients."""
    found = {}
    for seed, (kind, patient, video) in enumerate([("", 1, 1), ("", 2, 7), ("non", 2, 3)]):
        stem = f"p{patient}_v{video}"
        folder = root / f"{kind}selectedVideos" / f"p{patient}" / f"v{video}"
        names = [f"{stem}_{number:05d}" for number in range(1, 6)]
        chosen = [] if kind else names[1:3]
        write_files(
            folder / "input", {f"{n}.png": encode_png(frame(100 + 10 * seed + i)) for i, n in enumerate(names)}
        )
        if not kind:
            # a stem on each line; other endings of lines and names are no reason to lose frames
            lines = chosen if patient == 1 else [f"{name}.png\r" for name in chosen]
            (folder / f"{stem}_selectedFrames.txt").write_text("\n".join(lines) + "\n")
            write_files(folder / "groundtruth", {f"{chosen[0]}.txt": b"10 10 5 5 p50_70\n"})
        for i, name in enumerate(names):
            if every_frame or name in chosen:
                path = f"cadica/{kind}selectedVideos/p{patient}/v{video}/input/{name}.png"
                found[path] = frame(100 + 10 * seed + i)
    write_files(root, {"metadata.xlsx": b"PK", "selectedVideos/p1/lesionVideos.txt": b"v1\n"})
    return found


def write_coronarydominance(root: Path, compressed: bool = True) -> dict[str, np.ndarray]:
    """Series of CoronaryDominance in the folder `root`: three studies, four series."""
    found = {}
    places = [
        "Left_Dominance/Study00001_11/LCA/3",
        "Left_Dominance/Study00001_11/RCA/12",
        "Right_Dominance/Study00002_7/LCA/1",
        "Right_Dominance/Study00010_5/RCA/1",
    ]
    for number, place in enumerate(places):
        frames = np.stack([frame(200 + 20 * number + index) for index in range(3 + 3 * (number == 3))])
        path = root / f"{place}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        save = np.savez_compressed if compressed else np.savez
        save(
            path, pixel_array=frames, studyid=np.array("1.2.3"), primary_angle=np.array(12.5), is_artifact=np.array(0)
        )
        found |= {f"coronarydominance/{place}.npz#{index:05d}": pixels for index, pixels in enumerate(frames)}
    return found


def xcad_files() -> dict[str, bytes]:
    """Files of XCAD: fractals, angiograms, background, and the labelled test set."""
    places = ["train/trainA", "train/trainB", "train/trainC", "test/images", "test/masks"]
    return {
        f"{place}/{number}.png": encode_png(frame(300 + 10 * kind + number))
        for kind, place in enumerate(places)
        for number in range(3)
    }


def write_xcad(root: Path) -> dict[str, np.ndarray]:
    """XCAD's tree in the folder `root`."""
    write_files(root, xcad_files())
    return xcad_frames()


def write_xcad_zip(path: Path) -> dict[str, np.ndarray]:
    """`XCAD.zip`."""
    write_zip(path, xcad_files(), "XCAD/")
    return xcad_frames()


def xcad_frames() -> dict[str, np.ndarray]:
    return {f"xcad/train/trainB/{number}.png": frame(310 + number) for number in range(3)}


def write_syntax(root: Path) -> dict[str, np.ndarray]:
    """A folder of images; how SYNTAX really lies is not known."""
    names = ["case 1/a.png", "case 1/b.png", "c.png"]
    write_files(root, {name: encode_png(frame(400 + i)) for i, name in enumerate(names)})
    return {f"syntax/{name}": frame(400 + i) for i, name in enumerate(names)}


def write_originals(root: Path) -> dict[str, np.ndarray]:
    """All four originals in one folder, XCAD still packed."""
    return (
        write_cadica(root / "CADICA")
        | write_coronarydominance(root / "CoronaryDominance")
        | write_xcad_zip(root / "XCAD.zip")
        | write_syntax(root / "SYNTAX")
    )
