"""Settings in YAML that are out to hurt: beside a checkpoint of others, or as a config of train.py."""

from tests.hostile.pickles import MARKER, TOUCH

DEEP = 20_000
LAUGHTER = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)

YAMLS: dict[str, bytes] = {
    name: content if isinstance(content, bytes) else content.encode()
    for name, content in {
        "nothing": "",
        "a list": "- 1\n- 2",
        "a text": "model",
        "no YAML": "\tmodel: {",
        "zeros": bytes(100),
        "utf-16": "model: 1".encode("utf-16"),
        "latin-1": "model: Käse".encode("latin-1"),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "a pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        "a call": f"model: !!python/object/apply:os.system [{TOUCH!r}]",
        "a new object": f"model: !!python/object/new:subprocess.Popen [[touch, {MARKER}]]",
        "a module": "model: !!python/module:os",
        "a name": "model: !!python/name:os.system",
        "a class of its own": "model: !surprise {a: 1}",
        "a billion words": LAUGHTER,
        "an object that holds itself": "model: &a {params: *a}",
        "an object that is its own default": "model: &a {<<: *a}",
        "lists in lists": "[" * DEEP + "]" * DEEP,
        "objects in objects": "{a: " * DEEP + "1" + "}" * DEEP,
        "indented ever deeper": "".join(" " * i + "a:\n" for i in range(1500)),
        "a number of ten thousand digits": "model: " + "9" * 10_000,
        "a date that is none": "model: 2001-99-99",
        "one key twice": "model: {a: 1}\nmodel: {a: 2}",
        "a key that is a list": "? [model]\n: 1",
        "a settings that nobody knows": "surprise: {a: 1}",
        "an environment variable": "model: ${HOME}",
        "two documents": "model: 1\n---\nmodel: 2",
    }.items()
}
