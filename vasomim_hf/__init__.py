"""VasoMIM, a foundation model for X-ray angiograms, for the Hugging Face stack."""

from .version import __version__


__all__ = ["__version__"]
