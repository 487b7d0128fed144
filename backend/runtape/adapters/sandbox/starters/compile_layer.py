"""Compiles the modules of a set of packages inside a box, and prints their bytecode.

Called as ``python -I -S -u compile_layer.py LAYER`` with the modules' paths on stdin: relative to LAYER, each with a
NUL behind it.  Prints for each that compiles, in any order:

    4 bytes its place in that list, from 0 | 4 bytes length of what follows (both little-endian) | a .pyc file

No code of a package runs: a module is read and compiled.  A .pyc is of the kind that is never held against its source
again (PEP 552, unchecked): neither changes any more.  Written for every version from 3.7 on.
"""

import importlib.util
import marshal
import os
import sys

_WORKERS = 4


def _pyc(path):
    with open(path, "rb") as file:
        source = file.read()
    code = compile(source, os.fsdecode(path), "exec", dont_inherit=True)
    unchecked = (1).to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(source) + marshal.dumps(code)


def _write(fd, data):
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _main(layer):
    paths = sys.stdin.buffer.read().split(b"\0")[:-1]
    workers = min(_WORKERS, len(os.sched_getaffinity(0)))
    # Who has taken the one byte out of this pipe may write to stdout.
    turn, over = os.pipe()
    os.write(over, b"t")
    for worker in range(workers):
        if os.fork() == 0:
            for place in range(worker, len(paths), workers):
                try:
                    content = _pyc(os.path.join(os.fsencode(layer), paths[place]))
                except Exception:  # noqa: S112 - templates, other versions' syntax: whoever imports it is told
                    continue
                os.read(turn, 1)
                _write(1, place.to_bytes(4, "little") + len(content).to_bytes(4, "little") + content)
                os.write(over, b"t")
            os._exit(0)
    for _ in range(workers):
        os.wait()


_main(sys.argv[1])
