"""A pytest plugin: tells the session how each test ended (`-p gpu.recorder`)."""

from gpu import events


class _Recorder:
    def __init__(self):
        self.told = set()

    def pytest_runtest_logreport(self, report):
        """Setup, call and teardown report; what counts is the first of them that is not a pass."""
        if report.nodeid in self.told:
            return
        if report.failed:
            self._tell(report, events.FAILED, _last_line(report))
        elif report.skipped:
            self._tell(report, events.SKIPPED, _reason(report))
        elif report.when == "teardown":
            self._tell(report, events.PASSED)

    def pytest_collectreport(self, report):
        """A file that cannot be imported has tests that nobody would miss."""
        if report.failed:
            self._tell(report, events.FAILED, _last_line(report))
        elif report.skipped:
            self._tell(report, events.SKIPPED, _reason(report))

    def _tell(self, report, result, reason=""):
        self.told.add(report.nodeid)
        events.outcome(report.nodeid, result, reason)


def _reason(report):
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def _last_line(report):
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(crash.message if crash else report.longrepr).strip().splitlines()
    return lines[0][:300] if lines else ""


def pytest_configure(config):
    """With pytest-xdist, the controller alone: workers report to it."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(), "gpu-recorder")
