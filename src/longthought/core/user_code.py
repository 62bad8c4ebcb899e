"""Python files of a user: recipes, verifiers, methods."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from longthought.core.errors import SettingsError


def import_file(path: Path, prefix: str) -> ModuleType:
    """The module in a file, under the name ``prefix`` + stem. Nothing is left beside the file.

    Raises SettingsError when it cannot be imported.
    """
    name = prefix + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise SettingsError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = before
    return module
