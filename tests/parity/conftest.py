"""If the other implementations are required, a skipped comparison is a failure."""

import importlib.util
import os

import pytest

# Which requirements-parity.lock does not have: a skipped file would be a failure below.
collect_ignore = [] if importlib.util.find_spec("transformers") else ["test_transformers.py"]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("PATCHNETS_PARITY") == "required" and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
