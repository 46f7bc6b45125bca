"""What Qu and Horváth report (arXiv:2402.05966): test accuracy in per cent, "mean±deviation" over their pairs.

Midpoints of two networks; "paper" is the variant of the cut. Tables 1, 3 and 6 are of plain VGG16 on CIFAR-10, 4 and 8
of VGG16 with batch norm, 7 of ResNet20, 5 of a vision transformer; 9, 10 and 11 are of CIFAR-100.
"""

from __future__ import annotations

from dataclasses import dataclass

AM, ZIP, CCA, OT = "activation-matching", "zipit", "cca", "transformer-transport"
#: (method, layers kept, repair) of a row.
Key = tuple[str, int, str]


@dataclass(frozen=True)
class Table:
    """One published table.

    Attributes:
        number: in the paper.
        columns: (method, repair) of each column of `rows`.
        rows: one line per depth of preservation.
    """

    number: int
    columns: tuple[tuple[str, str], ...]
    rows: str

    def cells(self) -> dict[Key, str]:
        found: dict[Key, str] = {}
        for line in self.rows.split("\n"):
            depth, *cells = line.split()
            for (method, repair), cell in zip(self.columns, cells, strict=True):
                found[method, int(depth), repair] = cell.replace("±", " ± ")
        return found


def _columns(repairs: str, *methods: str) -> tuple[tuple[str, str], ...]:
    return (("direct", "none"), *((method, repair) for method in methods for repair in repairs.split()))


_PLAIN, _NORM = "none repair rescale calibrate-bias", "none reset"

TABLES: dict[str, tuple[Table, ...]] = {
    "vgg16": (
        Table(
            1,
            _columns(_PLAIN, AM),
            "0 10.00±0.00 46.50±1.59 39.09±4.42 84.68±0.85 82.94±1.41\n"
            "3 10.03±0.05 62.40±0.64 39.97±2.55 86.77±0.06 85.53±0.16\n"
            "6 10.92±0.38 85.81±0.40 50.61±2.13 90.88±0.27 90.03±0.32\n"
            "8 26.35±6.54 91.15±0.13 87.37±1.73 92.43±0.23 91.84±0.05\n"
            "12 92.88±0.23 92.88±0.16 92.85±0.15 92.87±0.21 92.71±0.15",
        ),
        Table(
            3,
            _columns(_PLAIN, CCA),
            "0 10.00±0.00 81.90±3.86 57.73±4.32 83.14±2.03 80.32±4.29\n"
            "3 10.03±0.05 83.74±3.67 65.42±1.68 85.67±1.92 82.65±3.9\n"
            "6 10.92±0.38 88.77±2.13 73.52±3.16 89.91±0.87 88.00±2.3\n"
            "8 26.35±6.54 90.68±1.59 79.81±3.69 91.77±0.13 89.97±1.75\n"
            "12 92.88±0.19 92.91±0.28 92.33±0.23 92.92±0.13 92.85±0.23",
        ),
        Table(
            6,
            _columns(_PLAIN, ZIP),
            "0 10.00±0.00 42.62±3.04 67.93±5.03 84.70±0.23 83.24±0.13\n"
            "3 10.03±0.05 59.73±3.28 69.89±7.06 86.63±0.45 85.78±0.62\n"
            "6 10.92±0.38 85.30±0.78 80.36±4.46 90.84±0.25 90.20±0.27\n"
            "8 26.35±6.54 91.01±0.27 89.04±1.34 92.44±0.1 92.04±0.24\n"
            "12 92.88±0.19 92.89±0.25 92.88±0.19 92.91±0.24 92.74±0.16",
        ),
    ),
    "vgg16bn": (
        Table(
            4,
            _columns(_NORM, CCA),
            "0 10.00±0.00 10.00±0.00 91.17±0.14\n3 10.00±0.00 10.00±0.00 91.66±0.16\n"
            "6 10.00±0.00 10.00±0.00 93.2±0.02\n8 25.05±9.65 10.00±0.00 94.28±0.14\n"
            "12 94.26±0.10 10.00±0.00 94.42±0.08",
        ),
        Table(
            8,
            _columns(_NORM, AM, ZIP),
            "0 10.00±0.00 18.71±1.74 89.88±0.12 16.01±1.58 89.60±0.18\n"
            "3 10.00±0.00 27.08±2.55 90.44±0.22 23.95±2.93 90.22±0.29\n"
            "6 10.00±0.00 76.07±1.05 92.86±0.06 73.96±1.35 92.58±0.29\n"
            "8 25.05±9.65 92.04±0.37 94.16±0.11 91.93±0.14 94.17±0.13\n"
            "12 94.26±0.10 94.36±0.03 94.36±0.06 94.32±0.06 94.35±0.05",
        ),
    ),
    "resnet20": (
        Table(
            7,
            _columns(_NORM, AM, ZIP),
            "0 9.73±0.47 11.65±2.36 64.12±0.33 13.66±3.65 62.20±3.66\n"
            "6 9.02±1.70 13.57±3.58 68.33±0.52 15.03±5.42 63.01±3.76\n"
            "10 10.33±0.51 32.10±6.39 72.71±0.73 37.15±5.14 70.98±3.50\n"
            "13 10.27±0.35 52.57±5.81 76.76±0.99 43.63±6.96 72.29±2.66\n"
            "19 92.01±0.35 93.05±0.14 93.10±0.16 87.60±1.00 89.75±0.75",
        ),
    ),
    "vit": (
        Table(
            5,
            (("direct", "none"), (OT, "none")),
            "0 7.59 61.48\n3 28.46 73.79\n4 42.41 85.02\n5 71.34 88.46\n6 89.41 90.84",
        ),
    ),
}

#: Family -> the networks' mean accuracies, and their ensemble's.
EDGES = {
    "vgg16": ("91.88 ± 0.02, 91.67 ± 0.21", "92.93 ± 0.29"),
    "vgg16bn": ("93.48 ± 0.03, 93.41 ± 0.10", "94.37 ± 0.10"),
    "resnet20": ("91.85 ± 0.25, 91.79 ± 0.2", "93.08 ± 0.21"),
    "vit": ("93.34, 93.31", "93.37"),
}

#: The same of CIFAR-100.
HUNDRED: dict[str, tuple[Table, ...]] = {
    "vgg16": (
        Table(
            10,
            _columns(_PLAIN, AM),
            "0 1.02±0.03 1.99±0.68 30.63±4.82 30.15±1.57 33.76±1.53\n"
            "3 1.03±0.05 4.53±0.47 31.35±8.23 41.81±1.93 40.99±1.12\n"
            "6 1.42±0.18 14.26±0.67 34.17±8.51 47.47±1.37 46.39±0.58\n"
            "8 1.67±0.25 30.79±2.36 47.45±2.69 52.46±0.33 51.20±0.32\n"
            "12 56.79±0.40 63.70±0.26 64.31±0.35 63.66±0.29 63.40±0.06",
        ),
        Table(
            11,
            _columns(_PLAIN, ZIP),
            "0 1.02±0.03 1.43±0.09 25.24±2.03 28.44±4.75 31.91±1.36\n"
            "3 1.03±0.05 3.23±0.16 29.76±2.45 41.33±0.96 40.07±0.96\n"
            "6 1.42±0.18 12.69±0.24 34.05±2.61 46.93±1.12 45.72±0.61\n"
            "8 1.67±0.25 29.48±0.55 42.38±0.28 52.59±0.58 51.00±0.69\n"
            "12 56.79±0.40 63.51±0.21 64.03±0.06 63.31±0.26 63.05±0.28",
        ),
    ),
    "vgg16bn": (
        Table(
            9,
            _columns(_NORM, AM, ZIP),
            "0 1.00±0.00 1.25±0.44 59.82±0.55 1.07±0.10 59.44±0.65\n"
            "3 1.00±0.01 1.42±0.32 60.83±0.58 1.19±0.17 60.23±0.75\n"
            "7 1.02±0.03 4.64±1.20 65.43±0.57 2.86±0.56 65.05±0.34\n"
            "10 32.45±2.04 69.77±0.60 73.56±0.56 69.72±0.66 73.54±0.37\n"
            "12 69.31±1.11 74.72±0.36 74.92±0.40 74.60±0.14 74.67±0.24",
        ),
    ),
}
HUNDRED_EDGES = {
    "vgg16": ("63.34 ± 0.07, 63.39 ± 0.11", "66.30 ± 0.34"),
    "vgg16bn": ("72.76 ± 0.17, 72.79 ± 0.15", "75.21 ± 0.30"),
}


def published(family: str, classes: int) -> dict[Key, str]:
    """Every published cell of a family."""
    tables = HUNDRED if classes == 100 else TABLES
    return {key: cell for table in tables.get(family, ()) for key, cell in table.cells().items()}
