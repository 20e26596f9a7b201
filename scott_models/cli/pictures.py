"""Commands that draw pictures: `scott pca`, `scott attention` and `scott neighbours`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction

from .output import BadImages, print_result, show_table


def pca(
    images: Positional[list[Path]],
    /,
    *,
    out: Path,
    model: str = "scott_3_16",
    img_size: int | None = None,
    look: Literal["smooth", "blocky"] = "smooth",
    token_map: Path | None = None,
    bad_images: BadImages = "error",
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Draw principal components of patch features as colours.

    The components are computed over the patches of all images together.

    For example:
        scott pca a.jpg b.jpg c.jpg --out picture.png --img-size 448
        scott pca photos --out picture.png --model runs/photos --look blocky
        scott pca photos --out picture.png --model vit_small_patch14_reg4_dinov2.lvd142m --img-size 448

    The picture has one row per image. A row shows the image as the model saw it, the first component of all patches,
    the foreground patches, and three components of the foreground as red, green and blue. The same colour means the
    same thing in all images.

    Args:
        images: image files, or folders that are searched recursively; similar images give the clearest pictures.
        out: the picture to write: .png, .jpg or .webp.
        model: name of any timm model with patch tokens, local-dir:FOLDER, or the folder of a run.
        img_size: image size in pixels, a multiple of the patch size; by default the size the weights were trained at.
            Larger images give finer maps.
        look: smooth interpolates between patches; blocky shows each patch as a square.
        token_map: .npz file to write names, features, first component, foreground and colours of the patches to.
        bad_images: error stops at images that cannot be used, and lists all of them; skip leaves them out.
        json: print JSON instead of a sentence.
    """
    from ..pictures.pca import draw_pca

    skip = bad_images == "skip"
    drawn = draw_pca(images, out, model, img_size=img_size, look=look, token_map=token_map, skip_bad=skip).first
    count, *patches = drawn.shape
    print_result(
        str(out), {"out": out, "token_map": token_map, "images": count, "patches": patches, "model": model}, json
    )


def attention(
    images: Positional[list[Path]],
    /,
    *,
    out: Path,
    model: str = "scott_3_16",
    img_size: int | None = None,
    block: int = -1,
    look: Literal["smooth", "blocky"] = "smooth",
    bad_images: BadImages = "error",
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Draw how much attention each patch receives, per head.

    For example:
        scott attention a.jpg b.jpg --out attention.png --img-size 448
        scott attention photos --out attention.png --model runs/photos --block 0

    Args:
        images: image files, or folders that are searched recursively.
        out: the picture to write: .png, .jpg or .webp. Each map is scaled to its brightest patch.
        model: one of SCOTT's models, local-dir:FOLDER, or the folder of a run.
        img_size: image size in pixels, a multiple of the patch size; by default the size the weights were trained at.
        block: number of the transformer block, from 0; negative numbers count from the last block.
        look: smooth interpolates between patches; blocky shows each patch as a square.
        bad_images: error stops at images that cannot be used, and lists all of them; skip leaves them out.
        json: print JSON instead of a sentence.
    """
    from ..pictures.attention_maps import draw_attention

    skip = bad_images == "skip"
    count, heads, *patches = draw_attention(
        images, out, model, img_size=img_size, block=block, look=look, skip_bad=skip
    ).shape
    facts = {"out": out, "images": count, "heads": heads, "patches": patches, "block": block, "model": model}
    print_result(str(out), facts, json)


def neighbours(
    queries: Positional[list[Path]],
    /,
    *,
    gallery: Annotated[list[Path], UseAppendAction],
    out: Path | None = None,
    model: str = "scott_3_16",
    count: int = 8,
    img_size: int | None = None,
    bad_images: BadImages = "error",
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Find the images in a gallery that are most like yours.

    Similarity is the cosine between the pooled features of two images.

    For example:
        scott neighbours a.jpg b.jpg --gallery photos --out neighbours.png
        scott neighbours a.jpg --gallery photos --gallery more --count 3 --json

    Args:
        queries: your images: image files, or folders that are searched recursively.
        gallery: image files or folders to search for neighbours; repeat the option for more.
            A query is never its own neighbour.
        out: a picture to write (.png, .jpg or .webp), with one row per query.
        model: name of any timm model with weights, local-dir:FOLDER, or the folder of a run.
        count: number of neighbours per query.
        img_size: image size in pixels; by default the size the weights were trained at.
        bad_images: error stops at images that cannot be used, and lists all of them; skip leaves them out.
        json: print JSON instead of a table.
    """
    from ..pictures.neighbours import draw_neighbours

    skip = bad_images == "skip"
    found = draw_neighbours(queries, gallery, out, model, count=count, img_size=img_size, skip_bad=skip)
    rows = [asdict(near) for each in found for near in each]
    show_table(rows if json else [{**row, "cosine": f"{row['cosine']:.3f}"} for row in rows], json)
