"""Commands that draw."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction

from .output import print_result, show_table


def pca(
    images: Positional[list[Path]],
    /,
    *,
    out: Path,
    model: str = "scott_3_16",
    img_size: int | None = None,
    look: Literal["smooth", "blocky"] = "smooth",
    token_map: Path | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Draw what patches have in common, as colours.

    These are principal components of their features over all images.

    For example:
        scott pca a.jpg b.jpg c.jpg --out picture.png --img-size 448
        scott pca photos --out picture.png --model runs/photos --look blocky
        scott pca photos --out picture.png --model vit_small_patch14_reg4_dinov2.lvd142m --img-size 448

    A row for each image: what the model saw, the first component of all patches, which of them are foreground, and
    three components of the foreground as red, green and blue. The same colour means the same thing in all of them.

    Args:
        images: image files, or folders, searched below too; alike ones give the clearest pictures.
        out: the picture to write, .png, .jpg or .webp.
        model: any timm model with patch tokens, or the folder of a run.
        img_size: pixels, in whole patches; more of them make finer maps; by default what the weights were trained at.
        look: smooth goes from patch to patch bit by bit; blocky shows the patches.
        token_map: an .npz file for names, features, first component, foreground and colours of the patches.
        json: print JSON instead of a sentence.
    """
    from ..pictures.pca import draw_pca

    drawn = draw_pca(images, out, model, img_size=img_size, look=look, token_map=token_map).first
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
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Draw how much attention each patch gets, head by head.

    For example:
        scott attention a.jpg b.jpg --out attention.png --img-size 448
        scott attention photos --out attention.png --model runs/photos --block 0

    Args:
        images: image files, or folders, searched below too.
        out: the picture to write, .png, .jpg or .webp; every map is as bright as its brightest patch.
        model: one of ours, or the folder of a run.
        img_size: pixels, in whole patches; by default what the weights were trained at.
        block: which transformer block; negative ones count from the last.
        look: smooth goes from patch to patch bit by bit; blocky shows the patches.
        json: print JSON instead of a sentence.
    """
    from ..pictures.attention_maps import draw_attention

    count, heads, *patches = draw_attention(images, out, model, img_size=img_size, block=block, look=look).shape
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
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Find the images of a gallery that are most like yours.

    Likeness is the cosine of what a model pools two images to.

    For example:
        scott neighbours a.jpg b.jpg --gallery photos --out neighbours.png
        scott neighbours a.jpg --gallery photos --gallery more --count 3 --json

    Args:
        queries: image files, or folders, searched below too.
        gallery: the same; give the option again for more. A query is not its own neighbour.
        out: a picture to write, .png, .jpg or .webp, a row for each query.
        model: any timm model, or the folder of a run.
        count: neighbours of each.
        img_size: pixels; by default what the weights were trained at.
        json: print JSON instead of a table.
    """
    from ..pictures.neighbours import draw_neighbours

    found = draw_neighbours(queries, gallery, out, model, count=count, img_size=img_size)
    rows = [asdict(near) for each in found for near in each]
    show_table(rows if json else [{**row, "cosine": f"{row['cosine']:.3f}"} for row in rows], json)
