"""Select the tests that run: `pytest` alone runs the quick ones, a marker a slower group, --all runs all of them."""

import os
import shutil
from collections import Counter
from importlib.util import find_spec

import pytest

GROUPS = ("slow", "deploy", "browser", "docs", "timm_suite")
PROGRAMS = {"chromium": ("chromium", "chromium-browser", "google-chrome")}
LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_addoption(parser):
    group = parser.getgroup("scott_models")
    group.addoption("--all", action="store_true", help="also run the slower groups: " + ", ".join(GROUPS))
    group.addoption(
        "--strict-packages", action="store_true", help="fail instead of skipping a test whose package is missing"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Distribute a whole run over the processors, unless -n, --pdb, --cov or a list of tests is given."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker must not start other workers
        return
    watched = config.option.collectonly or config.option.usepdb or config.pluginmanager.hasplugin("_cov")
    whole = not (chooses_files(config) or watched)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if whole and getattr(config.option, "numprocesses", 0) is None and processors > 1:
        config.option.numprocesses = min(processors, 8)
        if config.option.dist == "no" and (config.option.markexpr or config.option.all):
            config.option.dist = "loadfile"  # fixtures that a file's slow tests share are made once


def chooses_files(config):
    """Tell whether the user named files or tests; all tests in them run then."""
    return any(".py" in argument for argument in config.args)


def pytest_configure(config):
    config.stash[LEFT_OUT] = Counter()


def pytest_collection_modifyitems(config, items):
    if config.option.all or config.option.markexpr or chooses_files(config):
        return
    groups = [next((name for name in GROUPS if item.get_closest_marker(name)), None) for item in items]
    config.stash[LEFT_OUT] = Counter(filter(None, groups))
    config.hook.pytest_deselected(items=[item for item, group in zip(items, groups) if group])
    items[:] = [item for item, group in zip(items, groups) if not group]


def pytest_runtest_setup(item):
    missing = [name for marker in item.iter_markers("needs") for name in marker.args if not is_here(name)]
    if missing:
        extra = next((f"test-{name}" for name in GROUPS if item.get_closest_marker(name)), "test")
        programs = [name for name in missing if name in PROGRAMS]
        install = f"apt-get install {programs[0]}" if programs else f"pip install 'scott_models[{extra}]'"
        say = pytest.fail if item.config.option.strict_packages else pytest.skip
        say(f"needs {', '.join(missing)}: {install}")


def is_here(name):
    return any(map(shutil.which, PROGRAMS[name])) if name in PROGRAMS else find_spec(name) is not None


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Copy the counts of a worker of pytest-xdist: they are the same in all workers."""
    node.config.stash[LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left out", {}))


def pytest_terminal_summary(terminalreporter, config):
    if left_out := config.stash[LEFT_OUT]:
        groups = ", ".join(f"{count} {name}" for name, count in sorted(left_out.items()))
        terminalreporter.write_line(f"left out: {groups}; run a group by pytest -m NAME, all by pytest --all")
