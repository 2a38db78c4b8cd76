"""Packages that only some jobs need: the extras of pyproject.toml."""

import importlib.util


def require(module: str, extra: str, what: str) -> None:
    """ValueError with the command that installs the extra, unless the module can be imported; `what` needs it."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f'{what} needs {module}; install it with `pip install -e ".[{extra}]"`')
