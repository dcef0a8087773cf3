"""How the four collections of XA-170K lie on a disk or in an archive, from names alone: which files are frames of what.

Layouts as published readers of the collections describe them; that of SYNTAX is not known, so that every image counts.
"""

from dataclasses import dataclass


SOURCES = ("cadica", "syntax", "xcad", "coronarydominance")
# Frames that the authors of XA-170K took from each collection
KNOWN_COUNTS = {"cadica": 6594, "syntax": 2943, "xcad": 1621, "coronarydominance": 160320}


@dataclass(frozen=True, slots=True)
class FrameItem:
    """One frame of XA-170K: where it comes from and where its bytes are.

    Args:
        source (`str`): One of `SOURCES`.
        name (`str`): Begins with the source; unique, the same on every machine, and the key of the order. Frames of a
            series have a number behind `#`: `coronarydominance/Left_Dominance/Study00001_1/LCA/3.npz#00012`.
        patient_id (`str`, *optional*): As the collection calls the patient, where a path tells.
        study_id (`str`, *optional*): As the collection calls the study, where a path tells; of CADICA it is the video.
        frame_index (`int`, *optional*): Number of the frame in its run, where a name tells.
        location (`str`): Store and path inside it, with `::` between them.
    """

    source: str
    name: str
    patient_id: str | None
    study_id: str | None
    frame_index: int | None
    location: str
