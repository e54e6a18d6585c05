"""``python -m deis_analysis`` is ``deis-analysis``."""

from typing import Any

from deis_analysis import terminal


def _commands() -> Any:
    from deis_analysis.cli import main

    return main


def run() -> None:
    """The command, also where it is stopped while it is still being imported."""
    terminal.entry(_commands)


if __name__ == "__main__":
    run()
