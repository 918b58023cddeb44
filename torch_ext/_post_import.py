"""Runs a callback after the import of another module, without importing it."""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, callback: Callable[[], None]) -> None:
    """Calls back after each import of the module, and now if it is imported already.

    The callback may run more than once (a reload is an import too) and should not raise: what it
    raises, the import raises.
    """
    watch = _Watch(name, callback)
    if watch not in sys.meta_path:
        sys.meta_path.insert(0, watch)
    # Checked last, so that an import by another thread in the meantime is not missed.
    if name in sys.modules:
        importlib.import_module(name)  # waits for that thread
        callback()


@dataclass(frozen=True)
class _Watch(MetaPathFinder):
    """Finds one module by means of the finders after this one, and makes its loader call back."""

    name: str
    callback: Callable[[], None]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _call_after(spec.loader, self.callback)
                return spec
        return None


def _call_after(loader: Loader, callback: Callable[[], None]) -> None:
    # On the loader itself, not by a wrapper of it, which would stay in `__loader__` and lack what
    # tools look for there (source, resources).
    exec_module = loader.exec_module

    def exec_and_call(module: ModuleType) -> None:
        vars(loader).pop("exec_module", None)  # restores the loader
        exec_module(module)
        callback()

    loader.exec_module = exec_and_call  # type: ignore[method-assign]
