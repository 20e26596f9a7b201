import numpy as np
import pytest
import torch
from PIL import Image

from scott_models.errors import DataError
from scott_models.pictures.sheet import check_drawable, draw_map, draw_sheet


def test_blocky_maps_show_their_patches():
    picture = np.asarray(draw_map(torch.tensor([[False, True]]), (4, 8), "blocky"))
    assert picture.shape == (4, 8, 3)
    assert (picture[:, :4] == 0).all()
    assert (picture[:, 4:] == 255).all()


def test_smooth_maps_go_over_bit_by_bit():
    row = np.asarray(draw_map(torch.tensor([[0.0, 1.0]]), (4, 64), "smooth"))[2].astype(int).sum(axis=-1)
    assert len(np.unique(row)) > 10
    assert row[0] < row[32] < row[-1]


def test_three_values_are_colours():
    picture = draw_map(torch.tensor([[[1.0, 0.0, 0.5]]]), (2, 2), "blocky")
    assert picture.getpixel((0, 0)) == (255, 0, 128)


def test_a_sheet_has_every_picture_in_its_place(tmp_path):
    red, blue = (Image.new("RGB", (50, 25), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    draw_sheet([[(red, "a"), (blue, "a very long name " * 20)], [(blue, "")]], tmp_path / "sheet.png", cell=100)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 106 + 6, 2 * 124 + 6)
        assert [sheet.getpixel(at) for at in ((10, 10), (116, 10), (10, 134), (116, 134))] == [
            (255, 0, 0),
            (0, 0, 255),
            (0, 0, 255),
            (255, 255, 255),
        ]
        assert sheet.getpixel((10, 60)) == (255, 255, 255)  # the aspect is kept
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_nothing_is_left_of_a_sheet_that_cannot_be_written(tmp_path):
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(DataError, match="sheet.png"):
        draw_sheet([[(Image.new("RGB", (5, 5)), "")]], tmp_path / "sheet.png")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_sheets_too_large_for_their_format_are_refused_beforehand(tmp_path):
    assert check_drawable(tmp_path / "sheet.png", 500)
    assert check_drawable(tmp_path / "sheet.webp", 66)
    with pytest.raises(DataError, match=r"sheet\.webp.*at most 66 rows.*found 67.*\.png"):
        check_drawable(tmp_path / "sheet.webp", 67)
    tall = Image.new("RGB", (5, 66 * (224 + 24) + 6))
    tall.save(tmp_path / "tall.webp")
    with pytest.raises(DataError, match="expected at most 264 rows"):
        check_drawable(tmp_path / "sheet.jpg", 300)
