"""What the scripts share at the surface: one-line errors, and how a path becomes a model folder."""

import sys
from collections.abc import Callable
from pathlib import Path

from pytorch_lightning.utilities.exceptions import MisconfigurationException

USER_ERRORS = (ValueError, OSError, MisconfigurationException)
MODEL_FOLDER = "model"  # where a run exports to


def run(main: Callable[[], None]) -> None:
    """Runs a script's main: a mistake of the user becomes one line on standard error and exit code 2."""
    try:
        main()
    except USER_ERRORS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def model_folder(path: str | Path) -> Path:
    """The model folder meant by `path`: itself, or the one that the run in it exported.

    Raises ValueError where there is neither.
    """
    path = Path(path)
    for folder in (path, path / MODEL_FOLDER):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        raise ValueError(f"no such folder: {path}; expected a run of train.py or an exported model folder")
    raise ValueError(f"{path} holds no model: looked for config.json there and in {path / MODEL_FOLDER}")
