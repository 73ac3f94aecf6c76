"""Processes of train.py without the seconds that its imports take: forked from one that has imported it already.

    python -m tests.zygote

For each line of standard input, the JSON of train.py's arguments and of the file for what it says: the process' number
on one line of standard output, and its exit code on the next one.
"""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import cli
import train


def main() -> None:
    for line in sys.stdin:
        args, said = json.loads(line)
        if not (child := os.fork()):
            run(args, said)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(args: list[str], said: str) -> None:
    """Does not return."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["train.py", *args]
    try:
        cli.run(train.main)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    os._exit(code)


class Zygote:
    """Starts processes, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    def start(self, args: list[str], said: Path) -> "Forked":
        self._process.stdin.write(json.dumps([args, str(said)]) + "\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()), self._process)

    def end(self) -> None:
        self._process.communicate()


class Forked:
    def __init__(self, number: int, zygote: subprocess.Popen) -> None:
        self.number, self._zygote = number, zygote
        self._state = os.pidfd_open(number)

    def running(self) -> bool:
        return not select.select([self._state], [], [], 0)[0]

    def kill(self) -> None:
        os.kill(self.number, signal.SIGKILL)

    def wait(self) -> int:
        os.close(self._state)
        return int(self._zygote.stdout.readline())


if __name__ == "__main__":
    main()
