"""What "Rethinking weight-averaged model-merging" (arXiv:2411.09263) prints in its tables, per cent."""

#: Tables 1 and 4 to 7 of the paper: VGG19, data -> number of models -> the columns above, without Ens Fts*.
AVERAGES: dict[str, dict[int, str]] = {
    "CIFAR-10": {
        2: "92.42 92.79 92.68 93.26 93.22 92.68 92.59",
        3: "92.47 92.82 92.65 93.54 93.48 92.75 92.65",
        5: "92.45 92.90 92.65 93.70 93.71 81.95 92.65",
        7: "92.42 92.79 92.65 93.85 93.71 92.76 92.71",
        10: "92.37 92.90 92.62 93.91 93.81 92.63 92.62",
    },
    "CIFAR-100": {10: "70.34 69.63 70.25 75.36 74.96 70.39 70.32"},
    "PathMNIST": {10: "90.04 32.42 88.48 92.95 75.17 88.59 88.34"},
    "DermaMNIST": {10: "74.17 68.18 74.16 75.76 69.73 73.92 73.17"},
    "CelebA": {10: "92.91 53.19 93.06 93.44 93.47 93.02 93.04"},
    "TinyImageNet": {10: "59.90 62.31 61.95 63.28 63.53 63.53 63.58"},
    "ChestXRay (AUROC)": {10: "80.66 79.29 80.43 81.77 81.07 80.43 80.43"},
}
#: Table 10: TinyImageNet x100, by number of models: Perf Ave, x100, the columns above from Uni Soups on.
X100 = {
    2: "59.87 5.60 6.70 6.99 1.59 6.94 6.45 1.52 6.96",
    10: "59.90 4.81 6.86 6.92 0.13 6.92 6.22 0.11 6.95",
}
#: Table 3: model 2's data -> model 2 alone, uniform, logits, features, all on CIFAR-100 (model 1: 70.37).
ACROSS = {
    "CIFAR-10": "5.84 49.63 69.93 69.93",
    "PathMNIST": "1.29 24.25 69.88 70.00",
    "DermaMNIST": "5.77 60.37 69.06 69.36",
    "CelebA": "1.03 49.33 69.48 69.61",
    "TinyImageNet": "18.16 61.02 58.40 58.52",
    "ChestXRay": "15.18 61.38 68.18 68.33",
}
