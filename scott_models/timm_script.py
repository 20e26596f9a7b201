"""Run a script of timm's with our models registered: train, validate, benchmark, inference, onnx_export.

timm cannot load other packages by itself. Its scripts know our models only if scott_models is imported first:

    python -m scott_models.timm_script train.py photos --model scott_3_16 --pretrained --num-classes 10
    python -m scott_models.timm_script validate.py photos --model local-dir:classifier --num-classes 10 --pretrained
    python -m scott_models.timm_script onnx_export.py scott_3_16.onnx --model scott_3_16 --dynamo

The scripts are not in timm's wheel but in its repository, https://github.com/huggingface/pytorch-image-models.
"""

import runpy
import sys
from pathlib import Path

import scott_models  # noqa: F401 -- importing registers the models with timm

from .console import show
from .errors import UserError, report_user_errors


def main() -> None:
    """Run the script that the first argument names, with the other arguments. Print help if there is none."""
    with report_user_errors():
        if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
            show(str(__doc__))
            return
        script = Path(sys.argv[1])
        if not script.is_file():
            raise UserError(f"{script}: expected a Python script, e.g. timm's train.py, found nothing there")
    sys.argv = sys.argv[1:]
    sys.path[0] = str(script.resolve().parent)  # as `python script.py` would set it
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
