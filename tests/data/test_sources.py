import contextlib
import pickle

import numpy as np
import pytest
from PIL import Image

from scott_models.data.sources import find_images, find_samples, load_image, read_imagenet100_classes
from scott_models.errors import DataError

GRADIENT = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)


def test_finds_flat_nested_and_by_class_in_order(tmp_path):
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "deep/d.tif", "deep/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    names = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path])]
    assert names == ["a.png", "b.JPG", "deep/d.tif", "deep/er/c.webp"]
    assert find_images([tmp_path / "deep", tmp_path / "a.png"])[-1] == tmp_path / "a.png"


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "class").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "given")
    assert find_images([tmp_path / "given"]) == [tmp_path / "given" / "class" / "a.png"]


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match="nowhere: .*found nothing"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"images \(.jpg, .*\), found none"):
        find_images([tmp_path])
    with pytest.raises(DataError, match="expected at least one folder"):
        find_images([])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
def test_every_format(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(GRADIENT).save(path, **options)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (30, 40))
    assert np.abs(np.asarray(image).astype(int) - GRADIENT).max() <= (12 if suffix == "jpg" else 0)


def test_every_mode_becomes_rgb(tmp_path):
    def loaded(image, name):
        image.save(tmp_path / name)
        image = load_image(tmp_path / name)
        assert image.mode == "RGB"
        return np.asarray(image)

    colour = Image.fromarray(GRADIENT)
    gray = np.repeat(np.asarray(colour.convert("L"))[..., None], 3, axis=2)
    assert np.array_equal(loaded(colour.convert("L"), "gray.png"), gray)
    assert np.array_equal(
        loaded(Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) << 8), "gray16.png"), gray
    )
    palette = colour.convert("P")
    assert np.array_equal(loaded(palette, "palette.png"), np.asarray(palette.convert("RGB")))
    assert np.array_equal(loaded(colour.convert("RGBA"), "opaque.png"), GRADIENT)
    assert np.abs(loaded(colour.convert("CMYK"), "cmyk.tif").astype(int) - GRADIENT).max() <= 2
    clear = colour.convert("RGBA")
    clear.putalpha(0)
    assert (loaded(clear, "clear.png") == 255).all()
    bilevel = loaded(colour.convert("1"), "bilevel.png")
    assert set(np.unique(bilevel)) == {0, 255}


def test_rotated_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    lying = Image.fromarray(np.rot90(GRADIENT).copy())
    lying.save(tmp_path / "rotated.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "rotated.png")), GRADIENT)


def test_bad_files_are_named_with_their_reason(tmp_path, bad_files):
    for name, reason in bad_files.items():
        with pytest.raises(DataError, match=f"{name}: {reason}"):
            load_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "tiff", "png"])
def test_damage_anywhere_is_no_traceback(tmp_path, suffix):
    """Check that files cut at any place, or with a run of zeros, are either read or refused with a DataError."""
    path = tmp_path / f"whole.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 25)):
        zeroed = whole[:place] + bytes(min(64, len(whole) - place)) + whole[place + 64 :]
        for content in (whole[:place], zeroed):
            path.write_bytes(content)
            with contextlib.suppress(DataError):
                load_image(path)
                continue
            refused += 1
    assert refused > 10


def test_what_cannot_be_opened(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="gone.png.*opened.*No such file"):
        load_image(tmp_path / "gone.png")
    Image.new("L", (100, 100)).save(tmp_path / "vast.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(DataError, match="size that Pillow opens.*larger"):
        load_image(tmp_path / "vast.png")


def test_more_than_16_bits_are_refused(tmp_path):
    for mode in ("I", "F"):
        Image.new(mode, (20, 20)).save(tmp_path / "deep.tif")
        with pytest.raises(DataError, match="8 or 16 bits.*found 32"):
            load_image(tmp_path / "deep.tif")


def test_large_jpegs_are_read_at_a_fraction(tmp_path):
    large = Image.fromarray(GRADIENT).resize((640, 480))
    large.save(tmp_path / "large.jpg", quality=95)
    assert load_image(tmp_path / "large.jpg").size == (640, 480)
    quick = load_image(tmp_path / "large.jpg", short_side=100)
    assert quick.size == (320, 240)  # half: a quarter would leave fewer than 200 pixels
    assert np.abs(np.asarray(quick).astype(int) - np.asarray(large.resize((320, 240)))).mean() < 3


def test_of_an_animation_the_first_picture(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(load_image(tmp_path / "moving.webp")).mean(axis=(0, 1)).tolist() == [255, 0, 0]


def layout(root, *names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(GRADIENT, i)).save(path)


def known(samples, root):
    return [(sample.image.relative_to(root).as_posix(), sample.label, sample.split) for sample in samples]


def test_labels_and_splits_of_folders(tmp_path):
    layout(tmp_path, "flat.png", "cat/a.png", "train/cat/b.png", "valid/dog/c.png", "Test/d.png")
    assert known(find_samples([tmp_path]), tmp_path) == [
        ("Test/d.png", None, "test"),
        ("cat/a.png", "cat", None),
        ("flat.png", None, None),
        ("train/cat/b.png", "cat", "train"),
        ("valid/dog/c.png", "dog", "val"),
    ]
    assert known(find_samples([tmp_path], ["train", "val"]), tmp_path) == [
        ("train/cat/b.png", "cat", "train"),
        ("valid/dog/c.png", "dog", "val"),
    ]
    assert known(find_samples([tmp_path / "train", tmp_path / "Test"]), tmp_path) == [
        ("train/cat/b.png", "cat", "train"),
        ("Test/d.png", None, "test"),
    ]
    message = r"splits \['test'\].*none of \['test'\].*there are \['train'\]"
    with pytest.raises(DataError, match=message):
        find_samples([tmp_path / "train"], ["test"])
    with pytest.raises(DataError, match="there are no splits"):
        find_samples([tmp_path / "cat"], ["train"])


def test_imagenet100_is_a_choice_of_classes(tmp_path):
    assert len(read_imagenet100_classes()) == 100
    chosen = min(read_imagenet100_classes())
    layout(tmp_path, f"train/{chosen}/a.JPEG", "train/n00000000/b.JPEG", f"val/{chosen}/c.JPEG")
    assert known(find_samples([f"imagenet100:{tmp_path}"]), tmp_path) == [
        (f"train/{chosen}/a.JPEG", chosen, "train"),
        (f"val/{chosen}/c.JPEG", chosen, "val"),
    ]
    with pytest.raises(DataError, match="n01440764.*none of the 100"):
        find_samples([f"imagenet100:{tmp_path / 'train' / 'n00000000'}"])


def test_torchvisions_pets(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    layout(base / "images", "Abyssinian_1.jpg", "beagle_1.jpg", "beagle_2.jpg")
    (base / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_1 2 2 1\n")
    (base / "annotations" / "test.txt").write_text("beagle_2 1 2 1\n")
    samples = find_samples([f"pets37:{tmp_path}"])
    assert [sample.split for sample in samples] == ["train", "train", "test"]
    assert [sample.label for sample in samples[:2]] == ["Abyssinian", "Beagle"]
    assert load_image(samples[0].image).size == (30, 40)
    with pytest.raises(DataError, match="expected torchvision's OxfordIIITPet"):
        find_samples([f"pets37:{tmp_path / 'nowhere'}"])


def test_torchvisions_flowers(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)  # the check wants the real files
    base = tmp_path / "flowers-102"
    layout(base / "jpg", *(f"image_{i:05d}.jpg" for i in range(1, 7)))
    savemat(base / "imagelabels.mat", {"labels": [1, 2, 1, 2, 1, 2]})
    savemat(base / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})
    samples = find_samples([f"flowers102:{tmp_path}"])
    assert [sample.split for sample in samples] == ["train", "train", "val", "val", "test", "test"]
    assert [sample.label for sample in samples] == 3 * ["pink primrose", "hard-leaved pocket orchid"]
    assert load_image(samples[0].image).size == (30, 40)
    assert len(find_samples([f"flowers102:{tmp_path}"], ["train", "val"])) == 4


@pytest.mark.deploy
@pytest.mark.needs("datasets")
def test_hugging_face_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    layout(tmp_path / "images", "a.png", "b.png")
    files = [str(tmp_path / "images" / name) for name in ("a.png", "b.png")]
    features = datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(names=["cat", "dog"]))
    made = datasets.Dataset.from_dict({"picture": files, "kind": [1, -1]}, features=features)
    datasets.DatasetDict(train=made, validation=made.select([1])).save_to_disk(tmp_path / "saved")
    samples = find_samples([f"hf:{tmp_path / 'saved'}"])
    assert [(sample.label, sample.split) for sample in samples] == [("dog", "train"), (None, "train"), (None, "val")]
    assert np.array_equal(np.asarray(load_image(samples[0].image)), GRADIENT)
    assert pickle.loads(pickle.dumps(samples[0])).label == "dog"  # samples reach worker processes pickled
    made.remove_columns("picture").save_to_disk(tmp_path / "bare")
    with pytest.raises(DataError, match=r"expected a column of images, found \['kind'\]"):
        find_samples([f"hf:{tmp_path / 'bare'}"])
    with pytest.raises(DataError, match="cannot be loaded by datasets"):
        find_samples([f"hf:{tmp_path / 'images'}"])
