"""Locating, fetching and verifying the pinned packages that pictures are made from."""

import hashlib
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

# Wheels only, of one fixed platform: nothing is built or run, and the file is the same whoever fetches it.
WHEEL = ("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--platform=manylinux_2_28_x86_64")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "npm": ("npm", "pack", "--silent", "{name}@{version}"),
    "pip": ("pip", "download", "--quiet", "--no-deps", *WHEEL, "{name}=={version}"),
    "apt": ("apt-get", "download", "{name}={version}"),
}
CLIENT_TIMEOUT = 900  # seconds; the largest package has 139 MB


@dataclass(frozen=True, kw_only=True)
class Package:
    """One published file: the client that gets it, what it is called on disk, and what it must hash to."""

    client: str
    name: str
    version: str
    file: str
    sha256: str
    licence: str

    def __post_init__(self) -> None:
        if self.client not in COMMANDS:
            raise ValueError(f"{self.name}: client must be one of {sorted(COMMANDS)}, got {self.client!r}")
        if Path(self.file).name != self.file:
            raise ValueError(f"{self.name}: file must be a bare file name, got {self.file!r}")

    @property
    def command(self) -> list[str]:
        """The ordinary client's command that puts the file into the current folder."""
        return [part.format(name=self.name, version=self.version) for part in COMMANDS[self.client]]

    @property
    def source(self) -> str:
        """Where a picture of it comes from, for the table and the report: "npm NAME VERSION"."""
        return f"{self.client} {self.name} {self.version}"

    def describe(self) -> dict[str, str]:
        """Its fields, for the report."""
        return asdict(self)


class PrepareError(ValueError):
    """Something the user has to put right; the message says what."""


class MissingPackages(PrepareError):
    """Packages that are neither on disk nor could be fetched; the message says which files to put where."""


def sha256_of(path: Path) -> str:
    """Of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def verify(path: Path, package: Package) -> None:
    """PrepareError with both hashes where the file is not the one that was pinned."""
    found = sha256_of(path)
    if found != package.sha256:
        raise PrepareError(
            f"{path}: expected SHA-256 {package.sha256} ({package.source}), found {found}; delete it to fetch it again"
        )


def run_client(package: Package, folder: Path) -> str | None:
    """Runs the package's client in `folder`. Returns None, or one line saying why it did not work."""
    try:
        done = subprocess.run(package.command, cwd=folder, capture_output=True, text=True, timeout=CLIENT_TIMEOUT)
    except FileNotFoundError:
        return f"{package.command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"{package.command[0]} gave up after {CLIENT_TIMEOUT} s"
    if done.returncode == 0:
        return None
    complaint = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
    return f"{package.command[0]} failed with exit code {done.returncode}: {complaint}"


def obtain(
    packages: Iterable[Package],
    folder: Path,
    fetch: Callable[[Package, Path], str | None] = run_client,
) -> dict[str, Path]:
    """The verified file of every package, by package name; fetched into `folder` where it is not there yet.

    Raises MissingPackages, listing every file that is missing with its hash, and PrepareError on a wrong hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, missing = {}, []
    for package in packages:
        path = folder / package.file
        failure = None if path.is_file() else fetch(package, folder)
        if path.is_file():
            verify(path, package)
            paths[package.name] = path
        else:
            missing.append((package, failure or f"{package.command[0]} did not write {package.file}"))
    if missing:
        raise MissingPackages(_how_to_provide(missing, folder))
    return paths


def _how_to_provide(missing: list[tuple[Package, str]], folder: Path) -> str:
    lines = [f"{len(missing)} package(s) missing: put these files into {folder.resolve()} and run the command again"]
    for package, failure in missing:
        lines.append(f"  {package.file}  sha256 {package.sha256}")
        lines.append(f"    from: {' '.join(package.command)}  ({failure})")
    return "\n".join(lines)
