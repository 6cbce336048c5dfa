"""Real data: samples from files, in batches, as the arguments of a network."""

from .samples import Pixels, Samples, open_data

__all__ = ["Pixels", "Samples", "open_data"]
