import pytest
from PIL import Image

from scott_models.data.bad_images import all_bad_listed, check_images, find_bad, find_good_images, leave_out_bad
from scott_models.data.images import load_image
from scott_models.errors import DataError


def test_all_bad_images_are_named_at_once(tmp_path, bad_files):
    paths = sorted(tmp_path.iterdir())
    assert {paths[i].name for i in find_bad(paths)} == {*bad_files}
    with pytest.raises(DataError) as caught:
        check_images(paths)
    assert all(name in str(caught.value) for name in bad_files)
    assert f"{len(bad_files)} of {len(paths)}" in str(caught.value)
    assert "--bad-images skip" in str(caught.value)


def test_bad_images_are_left_out_with_a_note(tmp_path, bad_files, capfd):
    assert [path.name for path in find_good_images([tmp_path], skip_bad=True)] == ["whole.png"]
    note = capfd.readouterr().err
    assert all(name in note for name in bad_files)
    assert "left out" in note
    with pytest.raises(DataError, match="2 of 2"):
        leave_out_bad([tmp_path / "cut.png", tmp_path / "empty.jpg"])


def test_work_that_meets_a_bad_image_names_the_others(tmp_path, bad_files):
    paths = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="4 of 5") as caught, all_bad_listed(paths):
        load_image(tmp_path / "cut.png")
    assert all(name in str(caught.value) for name in bad_files)
    with pytest.raises(DataError, match=r"^[^\n]*cut.png[^\n]*$"), all_bad_listed([tmp_path / "cut.png"]):
        load_image(tmp_path / "cut.png")  # a single one needs no list
    with pytest.raises(DataError, match="^other$"), all_bad_listed(paths):
        raise DataError("other")


def test_many_bad_images_are_not_all_listed(tmp_path):
    for i in range(25):
        (tmp_path / f"{i:02}.png").write_text("no image")
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    with pytest.raises(DataError, match="(?s)25 of 26.*and 5 more") as caught:
        check_images(sorted(tmp_path.iterdir()))
    assert "19.png" in str(caught.value)
    assert "20.png" not in str(caught.value)
