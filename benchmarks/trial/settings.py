"""Settings of the trial: runs of scott_3_16 at 64 px, each beside plain MIM-JEPA.

The plain run is the short run on a CPU of docs/RESULTS.md: no dropout, a decay of the target encoder from 0.99 to
0.998, and one learning rate for all batch sizes.
"""

from scott_models.pretrain.recipe import OBJECTIVES

DRY = tuple(f"model.{name}=0" for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path"))
COMMON = ("model.name=scott_3_16", "model.img_size=64", "data.short_side=96", "optim.batch_size=64", *DRY)
COMMON += ("optim.lr_scaling=none", "optim.start_ema=0.99", "optim.final_ema=0.998")


def term(name: str, weight: float, *more: str) -> tuple[str, ...]:
    """Return the settings of a term on pooled features."""
    return (f"objective.pooled={name}", f"objective.pooled_weight={weight}", *more)


def crops(*more: str) -> tuple[str, ...]:
    """Return the settings of an objective on several crops."""
    return (*OBJECTIVES["visreg"], *more)


def name_of(row: str, crops: int | str, seed: int) -> str:
    """Return the name of a run's files."""
    return f"{row.replace(',', '').replace(' ', '-')}-{crops}-{seed}"


ROWS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "visreg 0.3": term("visreg", 0.3),
    "infonce 0.3": term("infonce", 0.3),
    "splitmask": (*OBJECTIVES["splitmask"], "objective.words=1024"),
    "visreg on 2 crops": crops(),
    "infonce on 2 crops": crops("objective.pooled=infonce"),
    "infonce on 2 crops, learning rate 1e-3": crops("objective.pooled=infonce", "optim.peak_lr=1e-3"),
    "infonce on 2 crops, batch 32": crops("objective.pooled=infonce", "optim.batch_size=32"),
    "infonce on 2 crops, temperature 0.1": crops("objective.pooled=infonce", "objective.temperature=0.1"),
    "infonce on 2 and 4 crops": crops("objective.pooled=infonce", "objective.local_views=4"),
    "infonce 1": term("infonce", 1),
    "infonce 1 with another crop": term("infonce", 1, "objective.views_per_image=2"),
    "infonce 1 with another crop, decay 0.9 to 0.99": term(
        "infonce", 1, "objective.views_per_image=2", "optim.start_ema=0.9", "optim.final_ema=0.99"
    ),
    "visible alone": ("objective.context=visible",),
    "diet": tuple(OBJECTIVES["diet"]),
    "diet without label smoothing": (*OBJECTIVES["diet"], "objective.label_smoothing=0"),
    "learning rate 1e-3": ("optim.peak_lr=1e-3",),
    "vicreg 0.3": term("vicreg", 0.3),
    "visreg 1": term("visreg", 1),
    "batch 32": ("optim.batch_size=32",),
    "decay from 0.95": ("optim.start_ema=0.95",),
    "targets without norm": (),
    "48 to 96 px": ("model.img_size=96", "model.small_img_size=48", "data.short_side=128"),
    "visreg on 2 and 4 crops": crops("objective.local_views=4"),
    "plain, then as many crops of visreg": (),
    "predictor of one block": ("model.predictor_depth=1",),
    "learning rate 2e-3": ("optim.peak_lr=2e-3",),
    "batch 16": ("optim.batch_size=16",),
    "decay from 0.98": ("optim.start_ema=0.98",),
    "vicreg 1": term("vicreg", 1),
    "visreg 0.05": term("visreg", 0.05),
    "infonce 0.05": term("infonce", 0.05),
    "vicreg 0.05": term("vicreg", 0.05),
}
RAW = "targets without norm"
AFTER = {"plain, then as many crops of visreg": ("plain", "visreg on 2 crops")}  # two rows, trained one after the other
