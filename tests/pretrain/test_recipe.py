import re

import pytest

from scott_models.errors import RecipeError
from scott_models.pretrain.recipe import OBJECTIVES, Recipe
from scott_models.training import settings
from scott_models.writing import write_text_whole

RECIPES = sorted(path.stem for path in Recipe.folder.glob("*.toml"))


def test_defaults_are_the_papers_table():
    recipe = Recipe()
    assert recipe.differences(Recipe.load("flowers102")) == []
    optim = recipe.optim
    assert (optim.epochs, optim.batch_size, optim.warmup_epochs) == (300, 128, 40)
    assert (optim.start_lr, optim.peak_lr, optim.final_lr, optim.flat) == (1e-6, 5e-4, 1e-5, 0.72)
    assert (optim.start_weight_decay, optim.final_weight_decay) == (0.04, 0.4)
    assert (optim.start_ema, optim.final_ema) == (0.996, 1.0)
    assert (recipe.model.name, recipe.model.img_size, recipe.model.predictor_depth) == ("scott_12_16", 224, 3)
    assert (recipe.mask.kind, recipe.mask.ratio, recipe.mask.blocks) == ("blockwise", 0.6, "visible")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_opens_with_what_to_expect(name):
    Recipe.load(name)
    head = (Recipe.folder / f"{name}.toml").read_text().split("\n\n")[0]
    for word in ("Expected:", "Hardware and time:", f"Command: scott pretrain .*--recipe {name}"):
        assert re.search(word, head), word


def test_complete_toml_round_trip(tmp_path):
    recipe = Recipe.load("smoke", ["optim.epochs=7", "data.views=none", "mask.ratio=0.5", "monitor.test=true"])
    assert (recipe.optim.epochs, recipe.data.views, recipe.mask.ratio, recipe.monitor.test) == (7, "none", 0.5, True)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.load(path) == recipe
    assert recipe.differences(Recipe.load("smoke", ["data.views=none", "mask.ratio=0.5", "monitor.test=true"])) == [
        "optim.epochs: 7.0 and 2.0"
    ]


@pytest.mark.parametrize("name", ["caf\udce9", "花 😀", "a\x7f\x07\n\\\"b'"])
def test_names_of_any_characters(name, tmp_path):
    """Check that weights to start from are found again by the recipe of the run, even if their name is not UTF-8."""
    recipe = Recipe.load("smoke", [f"model.init={settings.to_toml(name)}"])
    assert recipe.model.init == name
    write_text_whole(tmp_path / "recipe.toml", recipe.to_toml(), errors=settings.TOML_ERRORS)
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


def test_lists_of_names(tmp_path):
    recipe = Recipe.load("smoke", ["data.splits=train,val", 'run.trackers=["wandb"]'])
    assert (recipe.data.splits, recipe.run.trackers) == (("train", "val"), ("wandb",))
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "recipe.toml") == recipe
    assert recipe.flat()["data.splits"] == "train,val"
    assert recipe.differences(Recipe.load("smoke")) == ["data.splits: ('train', 'val') and ()"]  # trackers may differ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["optim.epoch=3"], r"recipe.optim: unknown \['epoch'\]; known are \['epochs', 'batch_size',"),
        (
            ["optimiser.epochs=3"],
            r"recipe: unknown \['optimiser'\].*known.*'optim', 'monitor',",
        ),
        (["optim.epochs=many"], "recipe.optim.epochs: expected float, got 'many'"),
        (["optim.epochs=true"], "recipe.optim.epochs: expected float, got True"),
        (["optim.epochs=inf"], "recipe.optim.epochs: expected a finite number, got inf"),
        (["optim.batch_size=2.5"], "recipe.optim.batch_size: expected int, got 2.5"),
        (
            ["data.splits=train,dev"],
            r"data.splits.*train, val and test.*'dev'",
        ),
        (["data.splits=3"], "recipe.data.splits.*list of names.*got 3"),
        (["run.compile=true"], r"recipe.run.compile.*\['auto', 'on', 'off'\].*got True"),
        (["run.keep=0"], "recipe.run.keep.*at least 1.*got 0"),
        (["run.accumulate=0"], "recipe.run.accumulate.*at least 1.*got 0"),
        (["monitor.every=-1"], "recipe.monitor.every.*0 epochs.*got -1"),
        (["optim.lr_scaling=cubic"], r"recipe.optim.lr_scaling: expected one of \['sqrt', 'linear', 'none'\]"),
        (["data.views=other"], r"recipe.data.views.*\['different', 'same', 'none'\].*got 'other'"),
        (["optim.epochs=0"], "recipe.optim.epochs: expected more than 0, got 0"),
        (["optim.epochs=1"], "recipe.optim.warmup_epochs.*less than.*1 epochs.*got 1"),
        (["optim.batch_size=0"], "recipe.optim.batch_size.*at least 1.*got 0"),
        (["optim.flat=1.5"], "recipe.optim.flat.*0 to 1.*got 1.5"),
        (["model.pos_drop=1"], "recipe.model.pos_drop.*0 to below 1.*got 1.0"),
        (["model.grow=true"], "recipe.model.grow.*without model.init.*got True"),
        (["objective.name=dino"], r"recipe.objective.name.*'visreg', 'diet'\].*got 'dino'"),
        (["objective.name=visreg"], "recipe.objective.pooled.*term.*visreg.*got 'none'"),
        (["objective.name=beit", "objective.context=visible"], "objective.context: expected .*all.* beit"),
        (
            ["objective.name=visreg", "objective.pooled=visreg", "objective.views_per_image=1"],
            "recipe.objective.views_per_image.*2 or more.*visreg.*got 1",
        ),
        (
            ["objective.views_per_image=2"],
            "recipe.objective.views_per_image.*2 for mimjepa.*=infonce.*got 2",
        ),
        (["objective.local_views=2"], "recipe.objective.local_views.*more for visreg.*got 2"),
        (["objective.label_smoothing=1"], "recipe.objective.label_smoothing.*0 to below 1"),
        (["model.small_img_size=40"], "model.small_img_size.*multiple of 16.*below 64.*got 40"),
        (["model.small_img_size=64"], "model.small_img_size.*multiple of 16.*below 64.*got 64"),
        (["model.small_share=1"], "recipe.model.small_share.*above 0 and below 1.*got 1.0"),
        (["optim.finish_updates=-1"], "recipe.optim.finish_updates.*0 updates.*got -1"),
        (["objective.words=1"], "recipe.objective.words: expected at least 2, got 1"),
        (["objective.decoder_depth=0"], "recipe.objective.decoder_depth.*at least 1.*got 0"),
        (["objective.decoder_dim=16"], "recipe.objective.decoder_dim.*0 .*at least 32.*got 16"),
        (["objective.match=-1"], "recipe.objective.match.*0 or more.*got -1.0"),
        (["objective.temperature=0"], "recipe.objective.temperature: expected more than 0, got 0.0"),
        (
            ["objective.pooled=dino"],
            r"recipe.objective.pooled.*\['none', 'visreg', 'sigreg', 'vicreg', 'infonce'\]",
        ),
        (["objective.pooled_weight=0"], "recipe.objective.pooled_weight.*above 0.*got 0.0"),
        (
            ["objective.projector=64,wide"],
            "recipe.objective.projector.*whole numbers.*got '64,wide'",
        ),
        (["objective.projector=[64, 0]"], r"recipe.objective.projector.*1 or more.*got \[64, 0\]"),
        (
            ["objective.name=beit", "objective.pooled=visreg"],
            "recipe.objective.pooled: expected .*none.* beit",
        ),
        (["data.short_side=0"], "recipe.data.short_side.*at least 16.*got 0"),
        (["run.log_every=0"], "recipe.run.log_every.*at least 1.*got 0"),
        (["run.seed=-1"], "recipe.run.seed: expected 0 or more, got -1"),
        (["epochs=3"], "expected section.field=value, got 'epochs=3'"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.load("smoke", changes)


def test_recipes_that_are_none(tmp_path):
    with pytest.raises(RecipeError, match=r"expected one of \['beit-flowers102', .*got 'flowers'"):
        Recipe.load("flowers")
    broken = tmp_path / "broken.toml"
    broken.write_text("[optim\n")
    with pytest.raises(RecipeError, match=r"broken.toml: expected a recipe in TOML"):
        Recipe.load(broken)
    broken.write_text("optim = 3\n")
    with pytest.raises(RecipeError, match="recipe.optim.*section.*got 3"):
        Recipe.load(broken, ["optim.epochs=2"])


@pytest.mark.parametrize("recipe", ["flowers102", "splitmask-flowers102", "beit-flowers102"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_brings_its_settings_to_any_recipe(recipe, name):
    """Compare with the objective's own recipe; MIM-JEPA may train with or without dropout."""
    switched = Recipe.load(recipe, OBJECTIVES[name])
    own = Recipe.load("flowers102")
    if name != "mimjepa":
        masked = name in ("splitmask", "beit")
        own = Recipe.load(f"{name}-flowers102") if masked else Recipe.load("flowers102", OBJECTIVES[name])
    assert (switched.objective, switched.data) == (own.objective, own.data)
    assert name in ("visreg", "diet") or switched.mask == own.mask
    assert name == "mimjepa" or switched.model == own.model


def test_a_switched_objective_takes_no_other_ones_terms():
    pooled = ["objective.pooled=infonce"]
    for name in ("splitmask", "beit", "diet"):
        assert Recipe.load("smoke", [*pooled, *OBJECTIVES[name]]).objective.pooled == "none"
    visible = ["objective.context=visible"]
    assert Recipe.load("smoke", [*visible, *OBJECTIVES["visreg"]]).objective.context == "all"


@pytest.mark.parametrize("name", ["flowers102", "pets37", "imagenet100", "splitmask-flowers102", "beit-flowers102"])
def test_recipes_of_gpus_look_less_often(name):
    """Check the two intervals: a GPU must wait for every line of metrics and every look."""
    recipe = Recipe.load(name)
    assert (recipe.run.log_every, recipe.monitor.every) == (50, 30)
    assert (Recipe().run.log_every, Recipe().monitor.every) == (10, 10)


def test_a_resumed_run_is_watched_on_the_same_images():
    """Allow other looks and torch.compile in a resumed run, but no other images of the monitor."""
    recipe = Recipe.load("smoke")
    assert recipe.differences(Recipe.load("smoke", ["monitor.every=3", "run.compile=on"])) == []
    other = Recipe.load("smoke", ["monitor.images=100", "monitor.test=true"])
    assert recipe.differences(other) == ["monitor.images: 2000 and 100", "monitor.test: False and True"]


def test_parts_of_a_batch_change_what_splitmask_learns():
    """Check that parts matter only to InfoNCE, whose negatives come from the same part."""
    for changes, different in ((OBJECTIVES["mimjepa"], []), (OBJECTIVES["splitmask"], ["run.accumulate: 1 and 2"])):
        one, two = (Recipe.load("smoke", [*changes, f"run.accumulate={parts}"]) for parts in (1, 2))
        assert one.differences(two) == different
    one, two = (one.changed("objective", match=0.0), two.changed("objective", match=0.0))
    assert one.differences(two) == []


def test_widths_are_numbers_on_the_command_line_and_in_a_file(tmp_path):
    for text, widths in (("64,32", (64, 32)), ("[64, 32]", (64, 32)), ("16", (16,))):
        recipe = Recipe.load("smoke", ["objective.pooled=vicreg", f"objective.projector={text}"])
        assert recipe.objective.projector == widths
        (tmp_path / "kept.toml").write_text(recipe.to_toml())
        assert Recipe.load(tmp_path / "kept.toml") == recipe
        assert recipe.flat()["objective.projector"] == ",".join(map(str, widths))
