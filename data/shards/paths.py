"""From what a user names to shards: a tar, a folder of them, a brace pattern, or what only streams."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

MAX_SHARDS = 1_000_000  # that a pattern may stand for; more is a typing error
_BRACES = re.compile(r"\\.|\{(-?\d+|[A-Za-z])\.\.(-?\d+|[A-Za-z])(?:\.\.-?(\d+))?\}|[{},]", re.DOTALL)
_SCHEME = re.compile(r"(pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)


def is_stream(path: str) -> bool:
    """Whether a path is a `pipe:` or a URL, which can be read from its beginning only."""
    return _SCHEME.match(path) is not None and not path.lower().startswith("file:")


def expand(path: str) -> list[str]:
    """Every name that a brace pattern (`{000..099}`, `{a,b}`) stands for, as the webdataset library expands it.

    Raises ValueError where these are more than MAX_SHARDS, or the pattern is none.
    """
    count = sum(map(count_names, path.split("::")))  # beforehand: to expand them takes memory for each
    if count > MAX_SHARDS:
        raise ValueError(f"{path} stands for {count:,} shards, expected at most {MAX_SHARDS:,}")
    from webdataset.shardlists import expand_urls  # imports torch's data loading: only where it is needed

    try:
        return expand_urls(path)
    except AssertionError as error:  # of a variable ${NAME}, which the library looks up as WDS_NAME
        raise ValueError(f"{path}: {error}") from error


def count_names(pattern: str) -> int:
    """How many names a brace pattern stands for; a range of letters counts as one of their codes, so at most 6 more."""
    open_braces = [[0, 1]]  # of each, and of what is outside: names of the alternatives before, and of this one
    for found in _BRACES.finditer(pattern):
        first, last, step = found.groups()
        if first is not None:
            open_braces[-1][1] *= 1 + abs(_place(first) - _place(last)) // (int(step or 1) or 1)
        elif found[0] == "{":
            open_braces.append([0, 1])
        elif found[0] == "," and len(open_braces) > 1:
            open_braces[-1] = [sum(open_braces[-1]), 1]
        elif found[0] == "}" and len(open_braces) > 1:
            inside = sum(open_braces.pop())
            open_braces[-1][1] *= inside
    return sum(open_braces[0])


def _place(end: str) -> int:
    return ord(end) if end.isalpha() else int(end)


def local_shards(path: str) -> list[Path]:
    """The tars that a path names, as `named_shards` has them.

    Raises ValueError where a file is missing, is compressed, comes twice or there is none.
    """
    shards = named_shards(path)
    for shard in shards:
        check_shard(shard)
    if len(set(shards)) < len(shards):
        raise ValueError(f"{path}: names a shard twice, expected each once")
    return shards


def named_shards(path: str) -> list[Path]:
    """The tars that a path names, there or not: a tar, all `.tar` in a folder (in the order of their names), or a brace
    pattern. Raises ValueError where a folder has none."""
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
    return [Path(name).expanduser() for name in (expand(path) if not folder.exists() else [path])]


def check_shard(shard: Path) -> None:
    """ValueError where a shard is missing or compressed."""
    if not shard.is_file():
        what = "not a regular file" if shard.exists() else "no such file"
        raise ValueError(f"{shard}: {what}; expected a tar, a folder of tars, or a pattern such as a/{{000..099}}.tar")
    if shard.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
        raise ValueError(f"{shard}: compressed archives cannot be read at random: unpack it to a .tar")
