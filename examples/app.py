"""Serve a page on this machine: drop images on it and see a model's features. Needs pip install '.[app]'.

python examples/app.py                                     start with the pretrained weights and sample pictures
python examples/app.py --model runs/photos                 add a run of your own, or any timm model
python examples/app.py --gallery my/photos --port 8000     search for neighbours among your photos
GRADIO_SERVER_NAME=0.0.0.0 python examples/app.py          serve other machines too; there is no password
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
from scott_models.data.files import SUFFIXES, find_images
from scott_models.errors import UserError, needs_extra, report_user_errors
from scott_models.pictures import draw_attention, draw_neighbours, draw_pca
from scott_models.probes import load_model

SAMPLES = Path(__file__).parent / "images"
# as many columns as fit: gradio's fixed number of columns is too wide for a phone
CSS = ".grid-container {grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)) !important}"
model_of = lru_cache(maxsize=2)(load_model)


def page(pretrained: list[str], own: list[str], gallery: list[Path]):
    """Build the page as gradio.Blocks, with the first of the `own` models selected; its files are temporary."""
    import gradio as gr

    depths = {name: len(getattr(load_model(name, pretrained=False), "blocks", [0])) for name in [*pretrained, *own]}
    chosen = [*own, *pretrained][0]

    def make_handler(draw: Callable) -> Callable:
        """Wrap draw(files, out, model, size, block): the handler returns either the picture or a message."""

        def answer(dropped: list | None, name: str, size: int, block: int):
            folder = Path(tempfile.mkdtemp()) / "dropped"  # captions and messages contain the folder name of a file
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
            after = after(make_handler(draw), inputs, shown, concurrency_id="model").then  # one drawing at a time
        latest = {"trigger_mode": "always_last", "concurrency_id": "model"}
        block.input(make_handler(attention), inputs, outputs[attention], **latest)
        name.change(lambda name: gr.Slider(maximum=depths[name], value=depths[name]), name, block)
    return made


def free(path: Path) -> Path:
    """Return the path, or a similar unused path: images from two folders can have the same name."""
    number = 2
    while path.exists():
        path, number = path.with_stem(f"{path.stem}_{number}"), number + 1
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="timm model, local-dir:FOLDER or run; repeatable")
    parser.add_argument("--gallery", action="append", default=[], type=Path, help="images to find neighbours in")
    parser.add_argument("--port", type=int, help="by default the first free port from 7860")
    given = parser.parse_args()
    with report_user_errors(), tempfile.TemporaryDirectory() as folder:  # dropped images are deleted with the page
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
        with needs_extra("app"):
            import gradio as gr
        gallery = find_images(given.gallery) if given.gallery else []
        made = page(timm.list_pretrained("scott*"), given.model, gallery)
        # fonts of the reader's machine: the page loads nothing from other machines
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        settings = {"css": CSS, "quiet": True, "ssr_mode": False, "footer_links": []}
        _, address, _ = made.launch(server_port=given.port, theme=theme, prevent_thread_lock=True, **settings)
        print(f"open {address}  (Ctrl-C stops)", flush=True)
        made.block_thread()


if __name__ == "__main__":
    main()
