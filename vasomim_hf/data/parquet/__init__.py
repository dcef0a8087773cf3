"""Parquet shards of data sets: writing, verifying and reading by row group."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .export import export_dataset as export_dataset
    from .folder import load_parquet_folder as load_parquet_folder
    from .read import ParquetCropStream as ParquetCropStream
    from .read import ParquetFrames as ParquetFrames
    from .write import write_shards as write_shards


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
