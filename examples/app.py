"""A page on this machine: drop images, see what a model makes of them. Needs pip install '.[app]'.

python examples/app.py                                     the pretrained weights, on the sample pictures
python examples/app.py --model runs/photos                 also a run of your own, or any timm model
python examples/app.py --gallery my/photos --port 8000     neighbours among your photos
GRADIO_SERVER_NAME=0.0.0.0 python examples/app.py          for other machines too; whoever reaches it may use it
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from shutil import copy

import timm

import scott_models  # noqa: F401 -- importing registers the models with timm
from scott_models.data.sources import SUFFIXES, find_images
from scott_models.errors import UserError, needs_extra, report_user_errors
from scott_models.pictures import draw_attention, draw_neighbours, draw_pca
from scott_models.probes import load_model

SAMPLES = Path(__file__).parent / "images"
# as many columns as fit; gradio's fixed number of them does not fit a phone
CSS = ".grid-container {grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)) !important}"
model_of = lru_cache(maxsize=2)(load_model)


def page(pretrained: list[str], own: list[str], gallery: list[Path]):
    """A gradio.Blocks, on which the first of `own` models is chosen; it writes to Python's temporary folder."""
    import gradio as gr

    depths = {name: len(getattr(load_model(name, pretrained=False), "blocks", [0])) for name in [*pretrained, *own]}
    chosen = [*own, *pretrained][0]

    def showing(draw: Callable) -> Callable:
        """Around draw(files, out, model, size, block): the picture without words, or words without a picture."""

        def answer(dropped: list | None, name: str, size: int, block: int):
            folder = Path(tempfile.mkdtemp()) / "dropped"  # captions and messages name the folder of a file
            folder.mkdir()
            out, said = folder.parent / "sheet.png", "" if dropped else "Drop some images into the box first."
            try:
                if dropped:
                    files = [copy(path, free(folder / Path(path).name)) for path, _ in dropped]
                    draw(files, out, model_of(name, img_size=size), size, block)
            except UserError as error:
                said = str(error).replace(f"{folder}{os.sep}", "")
            return None if said else str(out), gr.Textbox(said, visible=bool(said))

        return answer

    def components(files, out, model, size, _):
        draw_pca(files, out, model, img_size=size)

    def attention(files, out, model, size, block):
        draw_attention(files, out, model, img_size=size, block=block - 1)

    def neighbours(files, out, model, size, _):
        draw_neighbours(files, [*files, *gallery], out, model, img_size=size)

    with gr.Blocks(title="scott_models", analytics_enabled=False) as made:
        gr.Markdown("# What the model sees\nImages stay on the machine that serves this page.")
        with gr.Row():
            samples = [str(path) for path in find_images([SAMPLES])]
            dropped = gr.Gallery(samples, label="images", file_types=list(SUFFIXES), buttons=[], height=280)
            with gr.Column():
                name = gr.Dropdown(list(depths), value=chosen, label="model")
                size = gr.Slider(112, 672, value=224, step=16, label="image size, pixels: larger is finer and slower")
                button = gr.Button("Look", variant="primary")
        depth = depths[chosen]
        outputs = {}
        for draw in (components, attention, neighbours):
            with gr.Tab(draw.__name__):
                if draw is attention:
                    block = gr.Slider(1, depth, value=depth, step=1, label="block")
                said = gr.Textbox(show_label=False, visible=False)
                outputs[draw] = [gr.Image(show_label=False, buttons=["download", "fullscreen"]), said]
        inputs = [dropped, name, size, block]
        after = button.click
        for draw, shown in outputs.items():
            after = after(showing(draw), inputs, shown, concurrency_id="model").then  # one drawing at a time
        latest = {"trigger_mode": "always_last", "concurrency_id": "model"}
        block.input(showing(attention), inputs, outputs[attention], **latest)
        name.change(lambda name: gr.Slider(maximum=depths[name], value=depths[name]), name, block)
    return made


def free(path: Path) -> Path:
    """The path, or one like it that is not taken: images of two folders may have one name."""
    number = 2
    while path.exists():
        path, number = path.with_stem(f"{path.stem}_{number}"), number + 1
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="a timm model, local-dir:FOLDER or run; or more")
    parser.add_argument("--gallery", action="append", default=[], type=Path, help="images that may be neighbours")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860")
    given = parser.parse_args()
    with report_user_errors(), tempfile.TemporaryDirectory() as folder:  # nothing dropped outlives the page
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
        with needs_extra("app"):
            import gradio as gr
        gallery = find_images(given.gallery) if given.gallery else []
        made = page(timm.list_pretrained("scott*"), given.model, gallery)
        # fonts of the reader's own machine: nothing is asked of any other
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        settings = {"css": CSS, "quiet": True, "ssr_mode": False, "footer_links": []}
        _, address, _ = made.launch(server_port=given.port, theme=theme, prevent_thread_lock=True, **settings)
        print(f"open {address}  (Ctrl-C stops)", flush=True)
        made.block_thread()


if __name__ == "__main__":
    main()
