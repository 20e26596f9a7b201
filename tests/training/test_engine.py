import math
import re

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from scott_models.data import decoded
from scott_models.data.loader import Crops
from scott_models.data.sources import find_samples
from scott_models.errors import DataError, RecipeError, TrainingError
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.training import engine
from scott_models.training.course import Course
from scott_models.training.optimizer import build_optimizer, set_schedules

SMALL = ("model.img_size=32", "model.predictor_depth=1", "optim.batch_size=4", "run.precision=no")


@pytest.fixture
def recipe():
    return Recipe.load("smoke", SMALL)


@pytest.fixture
def running(recipe, tmp_path):
    return engine.Engine(recipe, tmp_path, build_objective)


def test_precisions_follow_each_other_in_a_process(recipe, tmp_path):
    for precision in ("no", "bf16", "no"):
        running = engine.Engine(recipe.changed("run", precision=precision), tmp_path, build_objective)
        with running.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def batch(count=4, fill=None):
    crops = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    where = torch.stack([torch.zeros(count, dtype=torch.long), torch.arange(count)], dim=1)
    return where, crops


def weights(running):
    return {name: tensor.clone() for name, tensor in running.objective.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.name=resnet50"], r"recipe.model.name: expected one of \('scott_3_16', .*got 'resnet50'"),
        (["model.img_size=100"], "multiples of 16.*got 100 x 100"),
        (["model.img_size=16"], "more than 1 rows.*got 1 x 1"),
        (["mask.ratio=1.5"], "between 0 and 1, exclusive, got 1.5"),
        (["run.trackers=notes"], "notes"),
    ],
)
def test_settings_no_run_can_take(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        engine.Engine(Recipe.load("smoke", [*SMALL, *changes]), tmp_path, build_objective)


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16"), (False, "no")])
def test_bf16_by_itself_only_where_it_is_multiplied(recipe, monkeypatch, has, precision):
    monkeypatch.setattr(engine, "has_bf16", lambda: has)
    auto = recipe.changed("run", precision="auto")
    assert engine.resolve_precision(auto).run.precision == precision
    assert engine.resolve_precision(recipe).run.precision == "no"  # an explicit precision stays


def test_an_engine_settles_it_too(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "has_bf16", lambda: False)
    running = engine.Engine(recipe.changed("run", precision="auto"), tmp_path, build_objective)
    assert running.accelerator.mixed_precision == "no"


@pytest.mark.parametrize(
    ("changes", "hidden"),
    [
        (["mask.kind=random"], 2),
        (["mask.blocks=masked"], 3),
        (["mask.ratio=0.25"], 1),
        (["data.views=none"], 2),
        (["data.views=same"], 2),
    ],
)
def test_settings_reach_the_objective(changes, hidden):
    objective = build_objective(Recipe.load("smoke", [*SMALL, *changes]))
    crops = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    context, target, visible = objective.inputs(crops, torch.Generator().manual_seed(0))
    assert torch.equal(context, target) == changes[0].startswith("data.views")
    assert set((~visible).sum(dim=1).tolist()) == {hidden}


def test_vectors_are_not_decayed(recipe):
    objective = build_objective(recipe)
    groups = {group["decayed"]: {id(p) for p in group["params"]} for group in build_optimizer(objective).param_groups}
    names = {id(p): name for name, p in objective.named_parameters()}
    assert {names[i] for i in groups[False]} == {
        "student.predictor.head.1.weight",
        "student.predictor.head.1.bias",
        "student.predictor.head.2.bias",
    }
    assert "student.context_encoder.mask_token" in {names[i] for i in groups[True]}
    assert not any(names[i].startswith("target") for group in groups.values() for i in group)


@pytest.mark.parametrize(
    ("scaling", "batch_size", "factor"),
    [("sqrt", 128, 1), ("sqrt", 32, 0.5), ("linear", 32, 0.25), ("none", 32, 1), ("sqrt", 512, 2)],
)
def test_learning_rate_by_batch_size(scaling, batch_size, factor):
    recipe = Recipe.load("flowers102", [f"optim.lr_scaling={scaling}", f"optim.batch_size={batch_size}"])
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(1, requires_grad=True)], "decayed": True}])
    for step, lr in ((400, 5e-4), (3000, 1e-5)):
        assert set_schedules(recipe.optim, optimizer, step, Course(3000), 10)[0] == pytest.approx(factor * lr)


def test_only_the_student_is_wrapped_for_several_processes(running):
    assert running.trained == ["student"]
    assert set(running.parts) == {"student", "target_encoder"}


def test_parts_of_a_batch_make_the_whole(tmp_path):
    """Check that gradients accumulated over two parts equal those of the whole batch, without dropout."""
    dry = [*SMALL, *(f"model.{name}=0" for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path"))]
    where, crops = batch()
    results = []
    for parts in (1, 2):
        recipe = Recipe.load("smoke", [*dry, f"run.accumulate={parts}"])
        running = engine.Engine(recipe, tmp_path, build_objective)
        values = running.update(recipe, list(zip(where.chunk(parts), crops.chunk(parts))), 1, Course(10), 5)
        results.append((weights(running), values["loss"].item(), values["grad_norm"].item()))
    (whole, loss, norm), (parted, parted_loss, parted_norm) = results
    assert parted_loss == pytest.approx(loss, abs=1e-6)
    assert parted_norm == pytest.approx(norm, rel=1e-4)
    for name, tensor in whole.items():
        torch.testing.assert_close(parted[name], tensor, rtol=0, atol=1e-6)


def test_a_batch_that_cannot_be_shared(tmp_path):
    recipe = Recipe.load("smoke", [*SMALL, "run.accumulate=3"])
    with pytest.raises(RecipeError, match="batch_size.*multiple of 3.*got 4"):
        engine.Engine(recipe, tmp_path, build_objective)


def test_an_update_that_is_not_finite_is_skipped(running, recipe, monkeypatch):
    """Check that weights and the optimiser's moments and counts stay; three skipped updates in a row end the run."""
    compute = running.objective.forward
    running.update(recipe, [batch()], 1, Course(10), 5)
    before = weights(running)
    moments = {
        i: {k: v.clone() for k, v in state.items()} for i, state in running.optimizer.state_dict()["state"].items()
    }
    for bad in (math.nan, math.inf):
        running.objective.forward = lambda *inputs, bad=bad: compute(*inputs) * bad
        values = running.update(recipe, [batch()], 2, Course(10), 5)
        assert not torch.isfinite(values["loss"])
        running.check(lambda: "")
    after = weights(running)
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("student"))
    for i, state in running.optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[name], moments[i][name]) for name in state)
    running.objective.forward = compute
    values = running.update(recipe, [batch()], 3, Course(10), 5)
    assert running.on_host(values)["skipped"] == 2
    assert not same(weights(running), before)
    running.objective.forward = lambda *inputs: compute(*inputs) * math.nan
    for step in (4, 5):
        running.update(recipe, [batch()], step, Course(10), 5)
        running.check(lambda: "")  # two before and two now, but not in a row
    running.update(recipe, [batch()], 6, Course(10), 5)
    with pytest.raises(TrainingError, match="3 updates.*optim.peak_lr.*the last is x"):
        running.check(lambda: "the last is x")


def test_a_row_of_bad_updates_is_seen_behind_a_good_one(running, recipe):
    """Check only after several updates, as on a GPU."""
    compute = running.objective.forward
    for step, factor in enumerate((1, math.nan, math.nan, math.nan, 1), start=1):
        running.objective.forward = lambda *inputs, factor=factor: compute(*inputs) * factor
        running.update(recipe, [batch()], step, Course(10), 5)
    with pytest.raises(TrainingError, match="not finite.*3 updates"):
        running.check(lambda: "")


class Convolutional(torch.nn.Module):
    """Train a network with BatchNorm and dropout to return 0."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5), torch.nn.Conv2d(4, 1, 3)
        )
        self.spoilt = 1.0

    def inputs(self, crops, draws):
        return (crops / 255 * self.spoilt,)

    def forward(self, images):
        return self.net(images).square().mean()

    def after_step(self, step, total):
        pass


def convolutional(recipe, compiled):
    objective = Convolutional()
    if compiled:
        objective.compile()
    return objective


def test_a_skipped_update_leaves_the_statistics_of_batchnorm(recipe, tmp_path):
    running = engine.Engine(recipe, tmp_path, convolutional)
    norm = running.objective.net[1]
    first, second = batch(), batch()
    running.update(recipe, [first], 1, Course(10), 5)
    before = {name: tensor.clone() for name, tensor in running.objective.state_dict().items()}
    assert norm.num_batches_tracked == 1
    running.objective.spoilt = math.nan
    running.update(recipe, [first, second], 2, Course(10), 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in running.objective.state_dict().items())
    running.objective.spoilt = 1.0
    running.update(recipe, [second], 3, Course(10), 5)
    assert norm.num_batches_tracked == 2
    assert norm.running_mean.isfinite().all()
    assert not torch.equal(norm.running_mean, before["net.1.running_mean"])


@pytest.mark.parametrize(("build", "exchanged"), [(convolutional, True), (build_objective, False)])
def test_processes_exchange_buffers_that_training_changes(recipe, tmp_path, build, exchanged):
    """Exchange BatchNorm's statistics; positions are constants and need no exchange."""
    assert engine.Engine(recipe, tmp_path, build).accelerator.ddp_handler.broadcast_buffers is exchanged


def fail(*_):
    raise RuntimeError("no such compiler\nfor many reasons\non many lines")


@pytest.fixture
def broken_compiler(monkeypatch):
    """Let torch.compile use a given backend, even where "auto" would not compile."""
    compile_with = torch.compile
    monkeypatch.setattr(engine, "can_compile", lambda recipe, device: recipe.run.compile != "off")

    def use(backend):
        torch.compiler.reset()
        monkeypatch.setattr(torch, "compile", lambda function: compile_with(function, backend=backend))

    yield use
    torch.compiler.reset()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("where", ["forward", "backward", "second update"])
def test_a_run_goes_on_without_a_compiler_that_fails(tmp_path, broken_compiler, capsys, parts, where):
    """Check that the weights are those of a run that never compiled; dropout is drawn again."""
    backward = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=fail)
    broken_compiler(backward if where == "backward" else fail)
    batches = [[batch(4 // parts) for _ in range(parts)] for _ in range(3)]
    results = []
    for choice in ("off", "auto"):
        recipe = Recipe.load("smoke", [*SMALL, f"run.accumulate={parts}", f"run.compile={choice}"])
        running = engine.Engine(recipe, tmp_path, convolutional)
        for step, each in enumerate(batches, start=1):
            with torch.compiler.set_stance("force_eager" if where == "second update" and step == 1 else "default"):
                running.update(recipe, each, step, Course(10), 5)
        results.append(weights(running))
    assert same(*results)
    told = capsys.readouterr().err
    assert told.count("torch.compile failed (") == told.count("\n") == 1
    assert re.search(r"RuntimeError: no such compiler.*\): the run goes on without it, and slower$", told)


def test_timing_goes_on_without_a_compiler_that_fails(recipe, tmp_path, photos, broken_compiler, monkeypatch, capsys):
    broken_compiler(fail)
    monkeypatch.setattr(engine, "TIMED_SECONDS", 0.01)
    crops = Crops(decoded.open_images(find_samples([photos]), 36), 32, 0)
    running = engine.Engine(recipe, tmp_path, build_objective)
    assert running.speed(recipe, running.order(recipe, 12), crops) > 0
    assert "torch.compile failed (" in capsys.readouterr().err


@pytest.mark.parametrize(("choice", "processes", "advice"), [("on", 1, "off or auto"), ("auto", 2, "off")])
def test_a_compiler_that_fails_is_an_error(recipe, tmp_path, broken_compiler, choice, processes, advice):
    """Raise where the recipe has compile=on, or where other processes may go on compiled."""
    broken_compiler(fail)
    recipe = recipe.changed("run", compile=choice)
    running = engine.Engine(recipe, tmp_path, build_objective)
    running.processes = processes
    with pytest.raises(TrainingError, match=rf"torch.compile works.*run.compile={advice}$"):
        running.update(recipe, [batch()], 1, Course(10), 5)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("full"), DataError("lost")])
def test_what_a_compiler_has_no_part_in_ends_the_run(recipe, tmp_path, broken_compiler, monkeypatch, error):
    broken_compiler("eager")
    running = engine.Engine(recipe, tmp_path, build_objective)
    calls = []

    def raise_it(*_):
        calls.append(1)
        raise error

    monkeypatch.setattr(running.objective, "inputs", raise_it)
    with pytest.raises(type(error)):
        running.update(recipe, [batch()], 1, Course(10), 5)
    assert len(calls) == 1


def test_timing_leaves_no_trace(recipe, tmp_path, photos, monkeypatch):
    monkeypatch.setattr(engine, "TIMED_SECONDS", 0.01)
    images = decoded.open_images(find_samples([photos]), 36)
    fresh, timed = engine.Engine(recipe, tmp_path, build_objective), engine.Engine(recipe, tmp_path, build_objective)
    crops = Crops(images, 32, 0)
    assert timed.speed(recipe, timed.order(recipe, 12), crops) > 0
    assert same(weights(fresh), weights(timed))
    one = batch()
    for running in (fresh, timed):
        running.update(recipe, [one], 1, Course(10), 5)
    assert same(weights(fresh), weights(timed))


class Undrawn(torch.nn.Module):
    """Wrap an objective without the property `drawing`, which older objectives lack."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective
        self.forward, self.after_step = objective.forward, objective.after_step

    def inputs(self, crops, draws):
        return self.objective.inputs(crops, draws)


def test_objectives_that_draw_for_themselves_learn_the_same(recipe, tmp_path, photos):
    images = decoded.open_images(find_samples([photos]), 36)

    def build(recipe, *, compiled):
        return Undrawn(build_objective(recipe, compiled=compiled))

    results = []
    for running in (engine.Engine(recipe, tmp_path, build_objective), engine.Engine(recipe, tmp_path, build)):
        order, crops = running.order(recipe, 12), Crops(images, 32, 0)
        for step, batch in enumerate(running.load(order, crops, 1, 4, 0), start=1):
            assert isinstance(batch[0][0], torch.Tensor) == isinstance(running.objective, Undrawn)
            running.update(recipe, batch, step, Course(10), 5)
        results.append([parameter.clone() for parameter in running.objective.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_compiling_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    with pytest.raises(RecipeError, match=r"expected a compiler \(g\+\+\), found none; .*run.compile=off"):
        engine.Engine(Recipe.load("smoke", [*SMALL, "run.compile=on"]), tmp_path, build_objective)


def test_compiled_computes_the_same(tmp_path, monkeypatch):
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_with(function, backend="aot_eager"))
    dry = [*SMALL, *(f"model.{name}=0" for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path"))]
    where = batch()
    results = []
    for choice in ("off", "on"):
        recipe = Recipe.load("smoke", [*dry, f"run.compile={choice}"])
        running = engine.Engine(recipe, tmp_path, build_objective)
        for step in (1, 2, 3):
            running.update(recipe, [where], step, Course(10), 5)
        results.append(weights(running))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=0, atol=1e-5)
