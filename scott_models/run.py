"""Run a script of timm's: the former name of `scott_models.timm_script`."""

from .timm_script import main

if __name__ == "__main__":
    main()
