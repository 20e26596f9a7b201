import pytest
from PIL import Image

from scott_models.errors import DataError
from scott_models.pictures.neighbours import draw_neighbours


def test_the_nearest_are_of_the_same_colour(photos, tmp_path):
    query = photos / "red" / "0.png"
    (found,) = draw_neighbours([query], [photos], tmp_path / "n.png", "scott_3_16", count=5, img_size=32)
    assert all("/red/" in near.image for near in found)
    assert str(query) not in [near.image for near in found]
    assert [near.cosine for near in found] == sorted((near.cosine for near in found), reverse=True)
    assert 0.5 < found[0].cosine <= 1
    with Image.open(tmp_path / "n.png") as picture:
        assert picture.size == (6 * 166 + 6, 184 + 6)


def test_a_gallery_smaller_than_asked_for(photos):
    (found,) = draw_neighbours([photos / "red" / "0.png"], [photos / "red"], None, "scott_3_16", count=99, img_size=32)
    assert len(found) == 5
    with pytest.raises(DataError, match="another image.*only itself"):
        draw_neighbours([photos / "red" / "0.png"], [photos / "red" / "0.png"], None, "scott_3_16", img_size=32)
    with pytest.raises(DataError, match="count.*at least 1.*got 0"):
        draw_neighbours([photos], [photos], None, "scott_3_16", count=0)


def test_galleries_that_overlap_count_once(photos):
    galleries = [photos, photos / "red", photos / "red" / "1.png"]
    (found,) = draw_neighbours([photos / "red" / "0.png"], galleries, None, "scott_3_16", count=99, img_size=32)
    assert len(found) == len({near.image for near in found}) == 11
