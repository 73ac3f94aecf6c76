"""From what a user names to shards: a tar, a folder of them, a brace pattern, or what only streams."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"(pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)


def is_stream(path: str) -> bool:
    """Whether a path is a `pipe:` or a URL, which can be read from its beginning only."""
    return _SCHEME.match(path) is not None and not path.lower().startswith("file:")


def expand(path: str) -> list[str]:
    """Every name that a brace pattern (`{000..099}`, `{a,b}`) stands for, as the webdataset library expands it."""
    from webdataset.shardlists import expand_urls  # imports torch's data loading: only where it is needed

    try:
        return expand_urls(path)
    except AssertionError as error:  # of a variable ${NAME}, which the library looks up as WDS_NAME
        raise ValueError(f"{path}: {error}") from error


def local_shards(path: str) -> list[Path]:
    """The tars that a path names: a tar, all `.tar` in a folder (in the order of their names), or a brace pattern.

    Raises ValueError where a file is missing, is compressed, comes twice or there is none.
    """
    if path.lower().startswith("file:"):
        path = unquote(urlsplit(path).path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        shards = sorted(
            entry for entry in folder.iterdir() if entry.suffix == ".tar" and not entry.name.startswith(".")
        )
        if not shards:
            raise ValueError(f"{folder}: no .tar files in this folder; folders in it are not looked into")
        return shards
    shards = [Path(name).expanduser() for name in (expand(path) if not folder.exists() else [path])]
    for shard in shards:
        if not shard.is_file():
            what = "not a file" if shard.exists() else "no such file"
            raise ValueError(
                f"{shard}: {what}; expected a tar, a folder of tars, or a pattern such as a/{{000..099}}.tar"
            )
        if shard.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
            raise ValueError(f"{shard}: compressed archives cannot be read at random: unpack it to a .tar")
    if len(set(shards)) < len(shards):
        raise ValueError(f"{path}: names a shard twice, expected each once")
    return shards
