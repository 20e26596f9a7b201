import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from scott_models.data.images import load_image, prepare_pillow
from scott_models.errors import DataError, UserError

GRADIENT = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["jpg", "jfif", "png", "webp", "bmp", "tiff", "avif", "jp2", "ppm"])
def test_every_format(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    kind = {"jfif": "JPEG"}.get(suffix)  # which Pillow reads by this name, but does not write
    Image.fromarray(GRADIENT).save(path, kind, **options)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (30, 40))
    assert np.abs(np.asarray(image).astype(int) - GRADIENT).max() <= {"jpg": 12, "jfif": 12, "avif": 12}.get(suffix, 0)


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


GREY16 = (np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64).astype("<u2")


def write_tiff(path, values, *, bits=16, tags=()):
    """Write an uncompressed grey TIFF with tags of our own choice."""
    data = values.tobytes()
    if bits == 12:  # two values in three bytes
        pairs = values.astype(int).reshape(-1, 2)
        data = bytes(b for x, y in pairs for b in (x >> 4, (x & 15) << 4 | y >> 8, y & 255))
    height, width = values.shape
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height, 279: len(data), **dict(tags)}
    entries[273] = 8 + 2 + 12 * (len(entries) + 1) + 4
    packed = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (256, 257, 273, 278, 279) else 3, 1, value)
        for tag, value in sorted(entries.items())
    )
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + data)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (GREY16, {}),
        (65535 - GREY16, {"tags": {262: 0}}),  # zero is white, as in radiographs
        (GREY16 >> 4, {"bits": 12}),
        (GREY16 >> 4, {"tags": {281: 4095}}),  # 12 bits of a camera
        ((GREY16.astype(int) - 2**15).astype("<i2"), {"tags": {339: 2}}),  # signed
        ((GREY16 >> 8).astype(np.uint8), {"bits": 8}),
        (255 - (GREY16 >> 8).astype(np.uint8), {"bits": 8, "tags": {262: 0}}),
    ],
)
def test_bits_of_grey(tmp_path, values, options):
    write_tiff(tmp_path / "grey.tif", values, **options)
    assert np.array_equal(np.asarray(load_image(tmp_path / "grey.tif"))[..., 0], GREY16 >> 8)


@pytest.mark.parametrize("largest", [4095, 65535])
def test_pgm_with_more_than_8_bits(tmp_path, largest):
    values = (GREY16.astype(int) * largest // 65535).astype(">u2")
    (tmp_path / "grey.pgm").write_bytes(b"P5 32 32 %d\n" % largest + values.tobytes())
    read = np.asarray(load_image(tmp_path / "grey.pgm"))[..., 0].astype(int)
    assert np.abs(read - (GREY16 >> 8)).max() <= 1


def add_chunk(png, kind, content, *, behind=False):
    """Add a chunk to a PNG, after its first one or before its last one."""
    place = len(png) - 12 if behind else 8 + 25
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:place] + chunk + png[place:]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_metadata_do_not_decide_over_pixels(tmp_path, kind, behind):
    """Check that a PNG with megabytes of profile or text is read, with its transparency and orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(GRADIENT).copy()).save(buffer, "png", exif=exif)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(80_000_000)
    packed = zlib.compress(profile, 1)
    content = {b"iCCP": b"a\0\0" + packed, b"zTXt": b"a\0\0" + packed, b"iTXt": b"a\0\1\0\0\0" + packed}[kind]
    (tmp_path / "scan.png").write_bytes(add_chunk(buffer.getvalue(), kind, content, behind=behind))
    assert np.array_equal(np.asarray(load_image(tmp_path / "scan.png")), GRADIENT)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(9), b"Exif\0\0"]
)
def test_damaged_exif_is_ignored(tmp_path, exif):
    Image.fromarray(GRADIENT).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (30, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x9286] = b"ASCII\0\0\0 a comment that cannot be encoded again \xff"
    Image.fromarray(GRADIENT).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        upright = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), upright)


def test_a_jpeg_beyond_the_limit_is_read_at_a_fraction(tmp_path, monkeypatch):
    Image.new("L", (9600, 9000), 128).save(tmp_path / "slide.jpg")
    Image.new("L", (9600, 9000), 128).save(tmp_path / "slide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9600 * 9000 // 3)
    image = load_image(tmp_path / "slide.jpg")
    assert image.size == (1200, 1125)
    assert np.asarray(image).min() == 128
    with pytest.raises(DataError, match="SCOTT_MAX_PIXELS"):
        load_image(tmp_path / "slide.png")
    monkeypatch.setenv("SCOTT_MAX_PIXELS", "100000000")
    prepare_pillow.cache_clear()
    assert load_image(tmp_path / "slide.png").size == (9600, 9000)
    monkeypatch.setenv("SCOTT_MAX_PIXELS", "many")
    prepare_pillow.cache_clear()
    with pytest.raises(UserError, match="SCOTT_MAX_PIXELS.*many"):
        load_image(tmp_path / "slide.png")
    monkeypatch.undo()
    prepare_pillow.cache_clear()
