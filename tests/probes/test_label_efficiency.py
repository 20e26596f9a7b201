import errno

import pytest
import torch

from scott_models.errors import DataError, WritingError
from scott_models.probes import pixel_cache
from scott_models.probes.label_efficiency import Point, draw_curve, measure_label_efficiency, sample_few


def test_few_images_of_every_class_are_drawn():
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 2)
    chosen = sample_few(labels, 3, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [3, 3, 2]
    assert torch.equal(chosen, sample_few(labels, 3, seed=0))
    assert not torch.equal(chosen, sample_few(labels, 3, seed=1))


def test_points_of_every_model_probe_and_number(photos):
    points = measure_label_efficiency(["scott_3_16"], [photos], [photos], shots=(1, 3, 50), draws=2, img_size=32)
    assert {point.images for point in points} == {1, 3, 6}
    assert {point.model for point in points} == {"scott_3_16", "scott_3_16 (random weights)"}
    assert {(point.images, point.draws) for point in points} == {(1, 2), (3, 2), (6, 1)}
    assert all(point.top1 == 100 for point in points if point.images == 6 and point.probe == "linear")
    assert all((point.spread is None) == (point.draws == 1) for point in points)


def test_images_are_read_once_for_all_models(photos, monkeypatch):
    read, load = [], pixel_cache.load_image
    monkeypatch.setattr(pixel_cache, "load_image", lambda path: (read.append(path), load(path))[1])
    points = measure_label_efficiency(["scott_3_16"], [photos], [photos], shots=(1,), draws=1, img_size=32)
    assert len({point.model for point in points}) == 2
    assert len(read) == 2 * 12


def test_one_image_a_class_is_its_own_only_neighbour(photos):
    """Expect one neighbour: ten neighbours among two images, one of each class, would always tie."""
    points = measure_label_efficiency(
        ["scott_3_16"], [photos], [photos], shots=(1,), draws=3, img_size=32, control=False
    )
    (nearest,) = (point for point in points if point.images == 1 and point.probe == "knn")
    assert nearest.top1 > 80


def test_the_picture(tmp_path):
    points = [Point("m", probe, images, 50.0, 2.0, 5) for probe in ("knn", "linear") for images in (1, 5, 20)]
    draw_curve(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="picture's name, .png, .svg or .pdf"):
        draw_curve(points, tmp_path / "curve.docx")


def test_a_full_disk_leaves_no_half_of_the_picture(tmp_path, monkeypatch):
    def full(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(WritingError, match="curve.png: cannot be written.*make room"):
        draw_curve([Point("m", "knn", 1, 50.0, 2.0, 5)], tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())


def test_shots_below_one(photos):
    with pytest.raises(DataError, match="at least 1.*got \\[0\\] and 5"):
        measure_label_efficiency(["scott_3_16"], [photos], [photos], shots=(0,))
