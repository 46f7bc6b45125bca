"""Files as published, and files that lie."""

import gzip
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isthmus import zoo
from isthmus.errors import DataError, InputError, MissingExtraError, UnsafeFileError
from isthmus.zoo.data import cifar, idx
from isthmus.zoo.data.idx import read_idx

CIFAR_PNG = Path(os.environ.get("ISTHMUS_TEST_CIFAR10", "/nonexistent"))
FASHION = Path(os.environ.get("ISTHMUS_TEST_FASHION_MNIST", "/nonexistent"))


class Bomb:
    """Unpickling this would create the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def idx_bytes(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_reads_what_was_written(tmp_path, suffix):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / f"x-ubyte{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    assert np.array_equal(read_idx(path), array)


WHOLE = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (WHOLE[:-1], "promises 24 bytes of shape .2, 3, 4., but there are only 23"),
        (WHOLE + b"x", "promises 24 bytes .* but there are more"),
        (WHOLE[:9], "promises"),
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01" + WHOLE[4:], "not an IDX file of unsigned bytes .it begins with 00 00 0d 01"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "promises 79228162458924105385300197375 bytes"),
    ],
)
def test_idx_that_lies_is_refused(tmp_path, content, words, zipped):
    path = tmp_path / ("x.gz" if zipped else "x")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=words):
        read_idx(path)


def test_damaged_gzip_is_refused(tmp_path):
    path = tmp_path / "x.gz"
    whole = gzip.compress(WHOLE)
    for damaged in (whole[:-9], whole[:15] + b"\xff\xff" + whole[17:], b"not gzip at all"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(path)


def write_fashion(folder, counts):
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in idx.FILES.items():
        y = np.repeat(np.arange(10, dtype=np.uint8), counts[split])
        (folder / images).write_bytes(idx_bytes(np.zeros((len(y), 2, 2), np.uint8)))
        (folder / f"{labels}.gz").write_bytes(gzip.compress(idx_bytes(y)))


def test_fashion_mnist_is_found_at_any_depth(tmp_path):
    write_fashion(tmp_path / "usr" / "share", {"train": 6000, "test": 1000})
    data = zoo.open_data(tmp_path)
    assert (data.name, len(data.y_train), len(data.y_test)) == ("fashion-mnist", 60000, 10000)
    assert (data.mean, data.std) == ((0.2860,), (0.3530,))
    assert zoo.open_data(f"fashion-mnist:{tmp_path}").sha256() == data.sha256()


def test_other_idx_data_is_not_taken_for_fashion_mnist(tmp_path):
    write_fashion(tmp_path, {"train": 6000, "test": 999})
    with pytest.raises(DataError, match=r"not Fashion-MNIST.*\n.*test: 9990 labels"):
        zoo.fashion_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="not found\n  train-images-idx3-ubyte"):
        zoo.fashion_mnist(tmp_path)


@pytest.fixture
def ten_per_file(monkeypatch):
    monkeypatch.setattr(cifar, "PER_FILE", 10)


FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def pixels(seed):
    return np.random.RandomState(seed).randint(0, 256, (10, 32, 32, 3)).astype(np.uint8)


def write_binary(folder):
    for seed, name in enumerate(FILES):
        body = pixels(seed).transpose(0, 3, 1, 2).reshape(10, 3072)
        records = np.concatenate([np.arange(10, dtype=np.uint8)[:, None], body], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def write_pngs(folder):
    for seed, name in enumerate(FILES):
        Image.fromarray(pixels(seed).reshape(10, 1024, 3)).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps(list(range(10)) * 5))
    (folder / "test_lables.json").write_text(json.dumps(list(range(10))))


@pytest.mark.usefixtures("ten_per_file")
def test_cifar10_binary_and_png_agree(tmp_path):
    homes = {"binary": tmp_path / "a" / "cifar-10-batches-bin", "png": tmp_path / "b"}
    for home in homes.values():
        home.mkdir(parents=True)
    write_binary(homes["binary"])
    write_pngs(homes["png"])
    binary, png = zoo.cifar10(tmp_path / "a"), zoo.open_data(tmp_path / "b")
    assert binary.sha256() == png.sha256()
    assert np.array_equal(binary.x_train[:10], pixels(0))
    assert np.array_equal(png.x_test, pixels(5))
    assert png.classes[3] == "cat"
    assert png.augmentation == zoo.Augment(4, flip=True)


@pytest.mark.usefixtures("ten_per_file")
def test_cifar10_that_lies_is_refused(tmp_path):
    write_binary(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin: 10 records of 3073 bytes expected, found 30729"):
        zoo.cifar10(tmp_path)
    path.write_bytes(b"\x09" + whole[1:])
    with pytest.raises(DataError, match=r"not CIFAR-10.*\n.*train: per class .4, 5"):
        zoo.cifar10(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        zoo.cifar10(tmp_path)


@pytest.mark.usefixtures("ten_per_file")
def test_cifar10_pngs_that_lie_are_refused(tmp_path):
    write_pngs(tmp_path)
    labels = tmp_path / "test_lables.json"
    for content in ("[0, 1, 2]", json.dumps([10] * 10), '{"0": 1}', "[0, 1", json.dumps([[]] * 10)):
        labels.write_text(content)
        with pytest.raises(DataError, match=r"test_lables.json"):
            zoo.cifar10(tmp_path)
    png = tmp_path / "data_batch_2.png"
    whole = png.read_bytes()
    for content in (whole[:-5000], b"GIF89a", b""):
        png.write_bytes(content)
        with pytest.raises(DataError, match=r"data_batch_2.png: cannot be read as PNG"):
            zoo.cifar10(tmp_path)
    Image.fromarray(np.zeros((9, 1024, 3), np.uint8)).save(png)
    with pytest.raises(DataError, match="1024 wide, 10 high expected"):
        zoo.cifar10(tmp_path)


def test_pickled_cifar10_is_refused_unopened(tmp_path):
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    (home / "test_batch").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UnsafeFileError, match=r"pickled.*\n\nhint: take the binary version, https"):
        zoo.open_data(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_npz_round_trip_keeps_everything(tmp_path):
    x = np.random.RandomState(1).randint(0, 256, (40, 5, 5, 3)).astype(np.uint8)
    y = np.arange(40) % 3
    made = zoo.Dataset.of(
        "toy",
        (x, y),
        (x[:9], y[:9]),
        classes="abc",
        mean=(0.1, 0.2, 0.3),
        augmentation=zoo.Augment(1, flip=False),
    ).split(0.2)
    path = tmp_path / "new" / "toy.npz"
    zoo.save_npz(made, path)
    read = zoo.open_data(path)
    for field in ("name", "classes", "mean", "std", "scale", "augmentation", "splits"):
        assert getattr(read, field) == getattr(made, field)
    for split in made.splits:
        assert all(map(np.array_equal, read.arrays(split), made.arrays(split)))
    before = path.read_bytes()
    zoo.save_npz(read, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["toy.npz"]


def test_npz_of_medmnist_names(tmp_path):
    x, y = np.zeros((6, 4, 4), np.uint8), np.arange(6)[:, None]
    arrays = {f"{s}_{k}": a for s in ("train", "val", "test") for k, a in (("images", x), ("labels", y))}
    np.savez_compressed(tmp_path / "bloodmnist.npz", **arrays)
    data = zoo.open_data(f"npz:{tmp_path / 'bloodmnist.npz'}")
    assert data.name == "bloodmnist"
    assert data.splits == ("train", "validation", "test")
    assert data.num_classes == 6
    assert data.split() is data


X, Y = np.zeros((6, 4, 4), np.uint8), np.arange(6)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": X, "y_train": Y}, "arrays missing\n  x_test\n  y_test\n\nhint: the file has x_train"),
        ({"a": X}, "arrays missing"),
        (
            {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "x_validation": X},
            "missing\n  y_validation",
        ),
        ({"x_train": X[0], "y_train": Y, "x_test": X, "y_test": Y}, "x_train: .N, H, W. or"),
        ({"x_train": X, "y_train": Y[:5], "x_test": X, "y_test": Y}, "y_train: 6 class numbers"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "mean": "high"}, "is malformed"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "augmentation": [1]}, "is malformed"),
        (
            {"x_train": np.zeros((6, 3, 8, 8), np.uint8), "y_train": Y, "x_test": X, "y_test": Y},
            "got .6, 3, 8, 8.\n\nhint: transpose",
        ),
    ],
)
def test_npz_that_lies_is_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=words):
        zoo.npz(tmp_path / "x.npz")


def test_pickles_in_npz_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    bomb = np.array([Bomb(tmp_path / "ran")], dtype=object)
    np.savez(path, x_train=bomb, y_train=Y, x_test=X, y_test=Y)
    with pytest.raises(UnsafeFileError, match="holds a pickled array"):
        zoo.npz(path)
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UnsafeFileError, match="is a pickle"):
        zoo.npz(path)
    assert not (tmp_path / "ran").exists()


def test_broken_npz_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x_train=X, y_train=Y, x_test=X, y_test=Y)
    whole = path.read_bytes()
    for content in (whole[:-40], b"", b"hello", whole.replace(b"(6, 4, 4)", b"(9, 4, 4)")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x.npz: (not an npz file|cannot be read)"):
            zoo.npz(path)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("digit", InputError, "neither a kind of data nor a path.*\n\nhint: did you mean digits?"),
        ("cifar:x", InputError, "did you mean cifar10?"),
        ("cifar10:", InputError, "a path is missing after the colon"),
        ("cifar10:/no/such", DataError, "there is no /no/such"),
        ("/no/such.npz", InputError, "neither"),
    ],
)
def test_specs_that_name_nothing(spec, error, words):
    with pytest.raises(error, match=words):
        zoo.open_data(spec)


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="no data set that we know"):
        zoo.open_data(tmp_path)
    with pytest.raises(DataError, match=r"no test_batch.bin and no test_batch.png"):
        zoo.cifar10(tmp_path)


def test_missing_extras_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'isthmus\[data\]'"):
        zoo.digits()
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "test_batch.png").touch()
    with pytest.raises(MissingExtraError, match=r"pip install 'isthmus\[data\]'"):
        zoo.cifar10(tmp_path)


@pytest.mark.skipif(not CIFAR_PNG.is_dir(), reason="ISTHMUS_TEST_CIFAR10 names no folder")
def test_real_cifar10():
    expected = "80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660"
    assert zoo.cifar10(CIFAR_PNG).sha256() == expected


@pytest.mark.skipif(not FASHION.is_dir(), reason="ISTHMUS_TEST_FASHION_MNIST names no folder")
def test_real_fashion_mnist():
    expected = "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f"
    assert zoo.fashion_mnist(FASHION).sha256() == expected
