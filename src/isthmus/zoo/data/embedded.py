"""The data set that comes with scikit-learn: no download, seconds to train on."""

from __future__ import annotations

import numpy as np

from isthmus.errors import MissingExtraError

from .dataset import Dataset
from .draws import stratified


def digits(test: int = 360, seed: int = 0) -> Dataset:
    """1797 handwritten digits of 8x8 pixels, 0 to 16, from scikit-learn's own files.

    The source gives no test split, so one is drawn: every class in proportion, the same for a seed.

    Args:
        test: images in the test split.
        seed: which images.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits" (its test half).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "the digits come with scikit-learn", hint="pip install 'isthmus[data]'"
        ) from error
    pixels, labels = (np.asarray(array, np.uint8) for array in load_digits(return_X_y=True))
    images = pixels.reshape(-1, 8, 8)
    chosen = stratified(labels, test, seed)
    rest = np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True)
    return Dataset.of("digits", (images[rest], labels[rest]), (images[chosen], labels[chosen]), scale=16.0)
