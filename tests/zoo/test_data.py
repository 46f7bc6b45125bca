import numpy as np
import pytest
import torch

from isthmus import zoo
from isthmus.errors import DataError, InputError
from isthmus.zoo.data.draws import permutation, stratified


@pytest.fixture(scope="module")
def digits():
    return zoo.digits()


def toy(n=40, channels=3, classes=4, **options):
    """Images that name themselves: pixel (0, 0) of image i is i."""
    x = np.random.RandomState(0).randint(0, 256, (n, 6, 6, channels)).astype(np.uint8)
    x[:, 0, 0, 0] = np.arange(n)
    y = np.arange(n) % classes
    return zoo.Dataset.of("toy", (x, y), (x[:8], y[:8]), **options)


def test_digits(digits):
    assert repr(digits) == "Dataset(digits: 1437 train, 360 test; 1x8x8, 10 classes)"
    assert digits.x_train.max() == 16
    assert digits.scale == 16
    assert np.bincount(digits.y_test).min() >= 34
    pixels = digits.x_train / 16
    assert digits.mean[0] == pytest.approx(pixels.mean(), abs=1e-12)
    assert digits.std[0] == pytest.approx(pixels.std(), abs=1e-12)


def test_digits_split_is_pinned(digits):
    # Checkpoints and reports name this test split: it may never change.
    assert digits.sha256() == zoo.digits(360, 0).sha256()
    assert digits.sha256() != zoo.digits(seed=1).sha256()
    assert digits.sha256()[:16] == "256c260b763365ed"


def test_permutations_are_pinned():
    assert permutation(8, 0, 1).tolist() == [7, 4, 5, 1, 6, 2, 0, 3]
    assert sorted(permutation(1000, 3)) == list(range(1000))


def test_stratified_sizes_are_exact_and_proportional():
    labels = np.repeat(np.arange(3), [100, 50, 7]).astype(np.uint8)
    for size in (1, 10, 31, 156):
        chosen = stratified(labels, size, seed=0)
        assert len(np.unique(chosen)) == size
        share = np.array([100, 50, 7]) * size / 157
        assert (abs(np.bincount(labels[chosen], minlength=3) - share) < 1).all()


def test_validation_is_kept_from_training(digits):
    split = digits.split(validation=137, seed=0)
    assert split.splits == ("train", "validation", "test")
    assert len(split.y_train) == 1300
    assert len(split.y_validation) == 137
    assert np.ptp(np.bincount(split.y_validation)) <= 2
    assert (split.mean, split.std) == (digits.mean, digits.std)
    together = np.concatenate([split.x_train, split.x_validation]).reshape(1437, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, digits.x_train.reshape(1437, -1)))
    assert np.array_equal(split.x_test, digits.x_test)


def test_validation_is_disjoint_and_seeded():
    data = toy()
    first, again, other = data.split(10, seed=0), data.split(10, seed=0), data.split(0.25, seed=1)
    names = [set(part[:, 0, 0, 0].tolist()) for part in (first.x_train, first.x_validation)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40
    assert np.array_equal(first.x_validation, again.x_validation)
    assert not np.array_equal(first.x_validation, other.x_validation)
    assert first.split() is first
    with pytest.raises(InputError, match="has a validation split already, of 10 images"):
        first.split(5)
    with pytest.raises(InputError, match="cannot keep 40 of 40"):
        data.split(40)
    with pytest.raises(DataError, match=r"no 'validation' split, only train, test\n\nhint: call .split"):
        data.loader("validation")


def test_loader_normalises_into_channels_first():
    data = toy(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    x, y = next(iter(data.loader("train", batch_size=7)))
    assert x.shape == (7, 3, 6, 6)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert y.tolist() == [0, 1, 2, 3, 0, 1, 2]
    expected = (data.x_train[:7] / 255 - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("augment", [None, zoo.Augment(pad=2)])
def test_loader_does_not_depend_on_the_batch_size(augment):
    data = toy()
    whole = [data.loader("train", batch_size=b, shuffle=True, augment=augment or False) for b in (40, 7, 1)]
    for epoch in (0, 3):
        xs = [torch.cat([x for x, _ in loader.epoch(epoch)]) for loader in whole]
        ys = [torch.cat([y for _, y in loader.epoch(epoch)]) for loader in whole]
        assert all(torch.equal(xs[0], x) for x in xs)
        assert all(torch.equal(ys[0], y) for y in ys)


def order(loader, epoch=0, seed=None):
    """The numbers of the images, in the order that they come in."""
    return [round(v) for x, _ in loader.epoch(epoch, seed) for v in (x[:, 0, 0, 0] * 255).tolist()]


def test_loader_repeats_itself_and_reshuffles_by_epoch():
    loader = toy(mean=(0.0,) * 3, std=(1.0,) * 3).loader("train", batch_size=16, shuffle=True, seed=5)
    assert len(loader) == 3
    assert [len(y) for _, y in loader] == [16, 16, 8]
    assert order(loader) == order(loader) == order(loader, seed=5)
    assert sorted(order(loader)) == list(range(40))
    assert order(loader) != order(loader, epoch=1)
    assert order(loader) != order(loader, seed=6)


def test_limit_takes_one_subset_and_drop_last_full_batches():
    data = toy(mean=(0.0,) * 3, std=(1.0,) * 3)
    loader = data.loader("train", batch_size=4, shuffle=True, limit=10)
    assert loader.samples == 10
    assert sorted(order(loader)) == sorted(order(loader, epoch=1)) == sorted(order(loader, seed=9))
    calm = order(data.loader("train", limit=10))
    assert calm == sorted(order(loader))
    assert calm != list(range(10))  # a file may be sorted by class
    assert len(order(data.loader("train", batch_size=16, drop_last=True))) == 32
    assert data.loader("train", limit=1000).samples == 40
    with pytest.raises(InputError, match="10 images do not fill one batch of 16"):
        data.loader("train", batch_size=16, limit=10, drop_last=True)
    with pytest.raises(InputError, match="limit is at least 1"):
        data.loader("train", limit=0)
    with pytest.raises(InputError, match="batch_size is at least 1"):
        data.loader("train", batch_size=0)


def test_augmentation_moves_and_mirrors():
    images = toy().x_train[:1]
    still = np.zeros((1, 3), np.uint8)
    crop = zoo.Augment(pad=2)
    shift = {dy: np.array([[dy % 5, 2, 0]], np.uint8) for dy in range(5)}
    assert np.array_equal(crop(images, shift[2]), images)
    assert np.array_equal(crop(images, shift[4])[:, :4], images[:, 2:])
    assert np.array_equal(crop(images, shift[4])[:, 4], images[:, 4])  # reflected: row 6 is row 4
    assert np.array_equal(crop(images, shift[0])[:, 1], images[:, 1])  # row -1 is row 1
    mirrored = np.array([[2, 2, 1]], np.uint8)
    assert np.array_equal(crop(images, mirrored), images[:, :, ::-1])
    assert np.array_equal(zoo.Augment(pad=2, flip=False)(images, mirrored), images)
    with pytest.raises(InputError, match="translation by 6 pixels is too large for images of 6 x 6"):
        zoo.Augment(pad=6)(images, still)


def test_augmentation_is_the_data_sets_own(digits):
    with pytest.raises(InputError, match="digits has no augmentation of its own"):
        digits.loader("train", augment=True)
    own = toy(augmentation=zoo.Augment(1, flip=False))
    assert own.loader("train", augment=True).augment == zoo.Augment(1, flip=False)
    assert own.loader("train").augment is None


def test_data_cannot_be_written_to():
    x, y = np.zeros((4, 5, 5), np.uint8), np.arange(4)
    data = zoo.Dataset.of("toy", (x, y), (x, y))
    with pytest.raises(ValueError, match="read-only"):
        data.x_train[0] = 1
    x[0] = 1  # the caller's own array stays theirs


def test_a_constant_channel_has_unit_deviation():
    x = np.zeros((4, 5, 5), np.uint8)
    assert zoo.Dataset.of("toy", (x, np.arange(4)), (x, np.arange(4))).std == (1.0,)


IMAGES = np.zeros((6, 4, 4, 1), np.uint8)
LABELS = np.arange(6)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ((IMAGES, LABELS[:5]), (IMAGES, LABELS[:4]), r"y_train: 6 class numbers.*\(5,\).*\n.*y_test"),
        ((IMAGES.astype(np.float32), LABELS), (IMAGES, LABELS), "x_train: unsigned bytes .* got float32"),
        ((IMAGES, LABELS - 1), (IMAGES, LABELS), "y_train.*int64 .* from -1 to 4"),
        ((IMAGES, LABELS / 2), (IMAGES, LABELS), "y_train.*got float64"),
        ((IMAGES, LABELS + 10**9), (IMAGES, LABELS), "y_train"),
        ((IMAGES, np.eye(6, dtype=np.uint8)), (IMAGES, LABELS), r"y_train.*\(6, 6\)"),
        ((IMAGES, LABELS), (IMAGES[:, :3], LABELS), r"x_test: images are \(3, 4, 1\), those of x_train"),
        ((IMAGES, LABELS), (IMAGES[:0], LABELS[:0]), "x_test: unsigned bytes"),
        ((IMAGES[0, 0], LABELS), (IMAGES, LABELS), r"x_train: unsigned bytes.*\(4, 1\)"),
    ],
)
def test_wrong_arrays_are_named(train, test, words):
    with pytest.raises(DataError, match=words):
        zoo.Dataset.of("toy", train, test)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": ["a"]}, "y_train: class 5, but there are 1 classes"),
        ({"mean": (0.0, 1.0), "std": (1.0, 1.0)}, "mean: 1 finite numbers"),
        ({"std": (0.0,)}, "expected to be positive"),
        ({"mean": (float("nan"),)}, "mean: 1 finite"),
    ],
)
def test_wrong_normalisation_is_named(options, words):
    with pytest.raises(DataError, match=words):
        zoo.Dataset.of("toy", (IMAGES, LABELS), (IMAGES, LABELS), **options)
