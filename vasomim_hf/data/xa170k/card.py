"""The data card of XA-170K: README.md of a build, with front matter and the counts of the build.

Facts not read at their source are marked as second-hand, and unstated ones as unknown.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCardData

from ...import_utils import require
from ..faults import NAMED
from ..near_duplicates import HASH_BITS, NearDuplicateThreshold
from .report import REPORT_NAME, BuildReport, ShardFile
from .sources import KNOWN_COUNTS, SOURCES


if TYPE_CHECKING:
    from datasets import Features


# repository name in the example before the data set is uploaded
PLACEHOLDER = "OWNER/NAME"
HOME = "https://huggingface.co/datasets/waha2000huang/XA-170K"
# title, location and stated licence of each collection
ORIGINS = {
    "cadica": ("CADICA", "Mendeley Data p9bpx9ctcv, version 5", "CC BY 4.0 (second-hand)"),
    "syntax": ("SYNTAX", "figshare 25801447", "not seen"),
    "xcad": ("XCAD", "https://github.com/AISIGSJTU/SSVS", "none stated: the repository has no licence file"),
    "coronarydominance": (
        "CoronaryDominance",
        "https://huggingface.co/datasets/BearSubj13/CoronaryDominance",
        "CC0 1.0 (its card; older revisions of the card say MIT)",
    ),
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

_INTRODUCTION = """X-ray coronary angiograms from four public collections, as combined by the authors of VasoMIM for
pre-training (https://arxiv.org/abs/2602.11536), as Parquet with a vesselness mask for each frame. This is a
third-party version of [their data]({home}): it adds masks, digests and groups of near duplicates, leaves all pixels
unchanged, and has no manual annotations. "Second-hand" marks facts taken from other people's code or text.

```python
from datasets import load_dataset

frames = load_dataset("{repo_id}", split="train", streaming=True)  # all collections, with masks
frames = load_dataset("{repo_id}", "cadica", split="train")        # a single collection
```"""

_COLUMNS = """| column | content |
|---|---|
| `image` | the frame: grey, 8 bits, original size; its `path` is its file name |
| `vesselness` | mask of the same size, 1 bit, true on vessels |
| `source` | the collection: {sources} |
| `patient_id`, `study_id`, `frame_index` | if contained in paths or names, else null; ids are those of the collections |
| `width`, `height` | in pixels |
| `sha256` | of the pixels: SHA-256 of `512x512:uint8` (height, width, dtype) followed by the grey values row by row |
| `near_duplicate_group` | index of the first row of the data set that shows the same image; see below |"""

_MASKS = """{how} The filter is Sato's tubeness with scales of {sigmas} pixels of the original frame, without a border of
{border} pixels, {floor}above the {percentile:g}th percentile, restricted to {region} (`vasomim_hf.data.vesselness`,
version {version}). The masks are the output of a ridge filter: they include catheters, wires and ribs, and miss some
vessels. They guide pre-training and are not ground truth."""

_REGIONS = {
    "brightest": "the connected region with the strongest response",
    "largest": "the largest connected region",
    "all": "every connected region",
}

_DUPLICATES = """Consecutive frames of a cine are near duplicates; one user of XA-170K kept 37,945 of 171,478 frames
(second-hand). Here two frames are near duplicates if at most {distance} of {bits} bits of a difference hash differ and
their thumbnails have a correlation of at least {correlation:g}; groups are transitive. Frames without structure form
groups of one. The threshold is a judgement call, see `vasomim_hf.data.near_duplicates`.

{figures}"""

_LEAKS = """- Many rows share a patient, study or cine. Split by patient or study where known, and keep groups of near
duplicates together: `vasomim_hf.data.split_by_group` does both.
- CADICA and XCAD are also used for evaluation. A model pre-trained on all of these frames has seen the frames of
CADICA; the annotated test frames of XCAD are probably not among them, which was not verified.
- None of the four collections includes ARCADE (second-hand)."""

_LICENCE = """XA-170K itself is CC BY-NC 4.0 (second-hand); read its own page before use. The collections keep their licences,
as stated in the table; one states none and one was not seen, so redistribution of their frames may not be permitted."""

_LIMITS = """- For research only. Nothing here was made for, or tested in, patient care.
- How the authors of XA-170K selected, resized and deduplicated the frames is not known.
- 93 % of the frames come from one collection. Scanner, hospital, view and patient are known for few of them.
- Ids come from file and folder names. Do not try to identify patients."""


def xa170k_card(report: BuildReport | None, features: "Features", repo_id: str = PLACEHOLDER) -> str:
    """Write the data card.

    Args:
        report ([`~xa170k_report.BuildReport`], *optional*): Counts of the build; `None` omits them.
        features (`datasets.Features`): Columns of the data set.
        repo_id (`str`, defaults to `"OWNER/NAME"`): Repository name in the example.

    Returns:
        `str`: The text of README.md.
    """
    sections = {
        "Columns": _COLUMNS.format(sources=", ".join(f"`{source}`" for source in SOURCES)),
        "Frames": _frames(report),
        "Vesselness masks": _masks(report),
        "Near duplicates": _duplicates(report),
        "Data leakage": _LEAKS,
        "Licences": _LICENCE,
        "Limits": _LIMITS,
        "Citation": _citation(),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    introduction = _INTRODUCTION.format(home=HOME, repo_id=repo_id)
    return f"---\n{_front_matter(report, features)}\n---\n\n# XA-170K as Parquet\n\n{introduction}\n\n{text}\n"


def _front_matter(report: BuildReport | None, features: "Features") -> str:
    num_rows = report.num_rows if report else sum(KNOWN_COUNTS.values())
    data = DatasetCardData(
        pretty_name="XA-170K",
        license="other",
        annotations_creators=["machine-generated"],
        size_categories=[next((name for limit, name in SIZES if num_rows < limit), "1M<n<10M")],
        source_datasets=[f"extended|other-{source}" for source in _sources(report)],
        task_categories=["image-feature-extraction", "image-segmentation"],
        license_name="those-of-the-collections",
        license_link=HOME,
        tags=["medical", "x-ray-angiography", "coronary-arteries", "self-supervised-learning"],
        configs=[
            {"config_name": name, **_content(report), "data_files": files} for name, files in _data_files(report)
        ],
        dataset_info=list(_infos(report, features)),
    )
    return data.to_yaml()


def _sources(report: BuildReport | None) -> list[str]:
    return [count.source for count in report.counts if count.num_rows] if report else list(SOURCES)


def _parts(report: BuildReport | None) -> Iterator[tuple[str, Sequence[ShardFile]]]:
    """Each configuration with its files."""
    yield "default", report.files if report else ()
    if report:
        yield from ((source, report.files_of(source)) for source in _sources(report))


def _data_files(report: BuildReport | None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for name, files in _parts(report):
        paths = [file.path for file in files] if name != "default" else ["data/*.parquet"]
        yield name, [{"split": "train", "path": paths}]


def _content(report: BuildReport | None) -> dict[str, str]:
    # `datasets` distinguishes its caches of local folders by this; the file patterns are the same for every build
    return {"description": f"content {report.key}"} if report else {}


def _infos(report: BuildReport | None, features: "Features") -> Iterator[dict[str, Any]]:
    datasets = require("datasets", "data")
    holder = DatasetCardData()
    datasets.info.DatasetInfosDict(default=datasets.DatasetInfo(features=features)).to_dataset_card_data(holder)
    columns = holder["dataset_info"]["features"]
    for name, files in _parts(report):
        info: dict[str, Any] = {"config_name": name, "features": copy.deepcopy(columns)}
        if report:
            size, rows = (sum(getattr(file, name) for file in files) for name in ("num_bytes_unpacked", "num_rows"))
            info["splits"] = [{"name": "train", "num_bytes": size, "num_examples": rows}]
            info |= {"download_size": sum(file.num_bytes for file in files), "dataset_size": size}
        yield info


def _frames(report: BuildReport | None) -> str:
    if report is None:
        known = [(*ORIGINS[source][:2], f"{KNOWN_COUNTS[source]:,}", ORIGINS[source][2]) for source in SOURCES]
        return _table(("collection", "where", "frames in XA-170K", "licence as stated"), known)
    header = (
        "collection",
        "where",
        "frames in XA-170K",
        "found",
        "here",
        "exact copies",
        "patients",
        "studies",
        "licence",
    )
    rows = []
    for count in report.counts:
        title, where, licence = ORIGINS[count.source]
        numbers = (
            count.num_known,
            count.num_found,
            count.num_rows,
            count.num_copies,
            count.num_patients,
            count.num_studies,
        )
        rows.append((title, where, *("not known" if n is None else f"{n:,}" for n in numbers), licence))
    return "\n\n".join([_table(header, rows), *_remarks(report)])


def _remarks(report: BuildReport) -> Iterator[str]:
    yield f"Built from {report.made_from}: {report.num_rows:,} frames, {report.num_bytes / 1e9:,.2f} GB."
    if report.differences:
        yield "The counts differ from those of XA-170K: " + "; ".join(report.differences) + "."
    else:
        yield "All counts match those of XA-170K."
    if report.faults:
        some = "; ".join(f"{fault.name}: {fault.reason}" for fault in report.faults[:NAMED])
        more = f"; and {len(report.faults) - NAMED:,} more in `{REPORT_NAME}`" if len(report.faults) > NAMED else ""
        yield f"Faults ({len(report.faults):,}): {some}{more}."


def _masks(report: BuildReport | None) -> str:
    if report is None:
        return "Computed by a ridge filter when the data set is built; the options are stated then."
    ready = sum(count.num_ready_masks for count in report.counts)
    how = f"{ready:,} masks were supplied with the frames and are unchanged; the filter computed {report.num_rows - ready:,}."
    options = report.vesselness
    return _MASKS.format(
        how=how,
        sigmas=", ".join(f"{sigma:g}" for sigma in options["sigmas"]),
        border=options["border"],
        floor="truncated to integers, " if options["floor"] else "",
        percentile=options["percentile"],
        region=_REGIONS[options["region"]],
        version=report.version,
    )


def _duplicates(report: BuildReport | None) -> str:
    threshold = NearDuplicateThreshold()
    figures = "Groups are counted when the data set is built."
    if report is not None:
        header = ("collection", "frames", "groups that start in it")
        counts = [
            (ORIGINS[count.source][0], f"{count.num_rows:,}", f"{count.num_groups:,}") for count in report.counts
        ]
        figures = (
            f"{_table(header, [*counts, ('all', f'{report.num_rows:,}', f'{report.num_groups:,}')])}\n\n"
            f"The largest group has {report.largest_group:,} frames; {report.num_crossing_groups:,} groups span "
            "more than one collection. `vasomim_hf.data.drop_near_duplicates` keeps one frame of each group."
        )
    numbers = {"distance": threshold.max_hash_distance, "correlation": threshold.min_correlation, "bits": HASH_BITS}
    return _DUPLICATES.format(figures=figures, **numbers)


def _citation() -> str:
    collections = "\n".join(f"- {title}: {where}" for title, where, _ in ORIGINS.values())
    return (
        "XA-170K: Vascular Anatomy-aware Self-supervised Pre-training for X-ray Angiogram Analysis. arXiv:2602.11536, "
        f"2026.\nCite the collections as requested on their pages:\n\n{collections}"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)
