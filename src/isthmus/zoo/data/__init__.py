"""Image data sets in memory, split without leaks, and loaders that repeat themselves exactly."""

from .archive import npz, save_npz
from .cifar import cifar10
from .dataset import Dataset
from .embedded import digits
from .idx import fashion_mnist
from .loader import Augment, Loader
from .sources import find_data, open_data

__all__ = [
    "Augment",
    "Dataset",
    "Loader",
    "cifar10",
    "digits",
    "fashion_mnist",
    "find_data",
    "npz",
    "open_data",
    "save_npz",
]
