"""Captions that are out to hurt, as they come from a command line or a file of captions."""

from tests.hostile.captions import BIDI, EMOJI, MEGABYTE

PROMPTS = {
    "a word of a megabyte": "x" * MEGABYTE,
    "a hundred thousand words": "ab " * 100_000,
    "a hundred thousand marks of one letter": "e" + "\u0301" * 100_000,
    "zeros": "a\0b",
    "controls": "".join(map(chr, range(32))) + "a\x7f\x9f",
    "right to left": BIDI,
    "emoji": EMOJI * 50,
    "half of a pair": "a \ud83d b",
    "no letters": "\ufffe\uffff",
    "the last letter": "\U0010ffff a",
    "a mark of byte order": "\ufeffa",
    "joiners": "a\u200d\u200c" * 1000,
    "out of the folder": "../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a path of windows": r"C:\con\nul.png",
    "a hidden file": ".bashrc",
    "an option": "--out=/",
    "commands": "$(touch MARKER) `touch MARKER`; touch MARKER",
    "a format": "{0.__class__} %s %n",
    "markup": "<script>alert(1)</script>",
    "one letter's expansions": "\ufdfa" * 20_000,
    "ends of lines": "a\r\nb\u2028c\u0085d",
}
