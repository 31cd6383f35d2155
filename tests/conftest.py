"""Where a test finds what it shares with others: environment of all processes, examples, marks; fixtures are in
``helpers/fixtures.py``."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no network in tests
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])  # a test's processes run this checkout
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="specauf-state-")  # the key that signs runs, not the user's own
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from helpers import slow  # noqa: E402

# The same examples in every run, as many as take a second or less; how long one takes says nothing.
for name, examples in (("tests", 25), ("all", 50)):
    hypothesis.settings.register_profile(name, derandomize=True, deadline=None, database=None, max_examples=examples)


def pytest_configure(config: pytest.Config) -> None:
    """More examples in ``make test-all``; and what tests share, except where they only are handed out to workers."""
    hypothesis.settings.load_profile("tests" if "not slow" in config.option.markexpr else "all")
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("helpers.fixtures")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if slow.is_slow(item.nodeid.removeprefix("tests/")):
            item.add_marker(pytest.mark.slow)
