"""A warm interpreter that is forked into boxes, and what each fork does: take an order, run its script, end.

Called as ``python -E -s -S -u zygote.py LIBRARY FOLDERS``, with the socket of requests at descriptor 3; FOLDERS are
joined by colons, as for ``python.py``.  Written for every version from 3.7 on.

Theory of operation.  The zygote imports what programs mostly use, freezes the garbage collector, and stays in
`zygote_serve` of LIBRARY (native/zygote.c) for good.  What returns from there is a runner: a fork in a box of its own,
confined.  It first does everything once that a run will need (`_rehearse`), since each page that it writes to has to be
copied; then it tells that it is armed and waits for its order.

What a script sees is what ``python script.py`` shows: the real ``__main__``, its own arguments and environment, no
frame of ours in a traceback, threads joined and ``atexit`` run at the end, global objects finalised.  Only then
`os._exit` saves the teardown of the interpreter, which would write to every page of it.
"""

_PRELOADED = """
_strptime abc argparse ast base64 bisect calendar codecs collections collections.abc contextlib copy csv
dataclasses datetime decimal enum fractions functools glob hashlib heapq html inspect io itertools json
keyword linecache locale logging math numbers operator pathlib pickle platform pprint queue random re
secrets select selectors shutil socket statistics string struct subprocess tempfile textwrap time
tokenize traceback types typing unicodedata urllib.parse uuid warnings weakref zlib
"""


def _main():
    import _sitebuiltins
    import _socket
    import atexit
    import builtins
    import contextlib
    import ctypes
    import gc
    import os
    import resource
    import signal
    import sys
    import threading

    for name in _PRELOADED.split():
        with contextlib.suppress(ImportError):  # built without it, or of another version
            __import__(name)
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    builtins.help = _sitebuiltins._Helper()

    library = ctypes.PyDLL(sys.argv[1])
    channel_fd, memory_limit_fd, processes_fd = 3, 4, 5
    order_in_fd, stdin_in_fd = 1, 2
    sys.path[1:] += [path for path in sys.argv[2].split(":") if path]
    ours = frozenset(sys.modules)
    environment = dict(os.environb)
    main = sys.modules["__main__"].__dict__
    for name in ("_main", "_PRELOADED"):
        del main[name]
    after_fork = ctypes.pythonapi.PyOS_AfterFork_Child

    def texts(data, at, count):
        found = []
        for _ in range(count):
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            found.append(data[at + 4 : end])
            at = end + 1
        return found, at

    def receive():
        """Return an order with the descriptor of its stdin, or -1; end this process when nothing is to be run."""
        datagram, ancillary, _, _ = channel.recvmsg(65536, 64)
        if not datagram:
            os._exit(0)
        fds = []
        for _, _, packed in ancillary:
            fds += [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)]
        data = datagram[1:]
        if datagram[0] & order_in_fd:
            data = os.pread(fds[0], os.fstat(fds[0]).st_size, 0)
            os.close(fds.pop(0))
        return data, fds[0] if datagram[0] & stdin_in_fd else -1

    def prepare(data, stdin_fd):
        """Do what an order asks for before its program runs; return the program's arguments."""
        number = int.from_bytes
        memory_bytes, processes = number(data[0:8], "little"), number(data[8:16], "little")
        files, arguments, variables, limits = (number(data[at : at + 4], "little") for at in (16, 20, 24, 28))
        at = 32 + 24 * limits
        sources, at = texts(data, at, 2 * files)
        arguments, at = texts(data, at, arguments)
        variables, at = texts(data, at, variables)
        (stdin,), at = texts(data, at, 1)
        for path, content in zip(sources[::2], sources[1::2]):
            folder = path.rpartition(b"/")[0]
            if folder:
                os.makedirs(folder, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            while content:
                content = content[os.write(fd, content) :]
            os.close(fd)
        if stdin:
            stdin_fd, write_end = os.pipe()
            os.write(write_end, stdin)
            os.close(write_end)
        if stdin_fd >= 0:
            os.dup2(stdin_fd, 0)
            os.close(stdin_fd)
        if memory_bytes:
            os.write(memory_limit_fd, b"%d" % memory_bytes)
        if processes:
            os.write(processes_fd, b"%d" % processes)
        for at in range(32, 32 + 24 * limits, 24):
            kind, soft, hard = (number(data[at + 8 * i : at + 8 * i + 8], "little") for i in range(3))
            resource.setrlimit(kind, (soft, hard))
        wanted = dict(variable.split(b"=", 1) for variable in variables)
        if wanted != environment:
            for name in environment.keys() - wanted.keys():
                del os.environb[name]
            os.environb.update(wanted)
        return [os.fsdecode(argument) for argument in arguments]

    def run(script):
        """Run the script in `__main__`; return its exit status, or the negative number of the signal to die of."""
        main.update(__file__=script, __doc__=None, __loader__=type(main["__loader__"])("__main__", script))
        try:
            with open(script, "rb") as file:
                source = file.read()
            exec(compile(source, script, "exec", dont_inherit=True), main)
        except SystemExit as error:
            return leave(error.code)
        except BaseException as error:
            # A syntax error of the script itself has no frame in it: nothing of ours is to be shown then either.
            frame = error.__traceback__.tb_next if error.__traceback__ else None
            try:
                sys.excepthook(type(error), error.with_traceback(frame), frame)
            except SystemExit as asked:
                return leave(asked.code)
            return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        return 0

    def leave(code):
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        flush(sys.stdout)
        print(code, file=sys.stderr)
        return 1

    def flush(stream):
        try:
            stream.flush()
        except (AttributeError, ValueError):
            pass  # replaced by something that cannot, or closed
        except OSError:
            return False
        return True

    def finish(status):
        """Take the steps of an interpreter that ends, in its order, and end."""
        try:
            threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]  # every version has it
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        atexit._run_exitfuncs()
        whole = flush(sys.stdout)
        flush(sys.stderr)
        if status < 0:
            signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        # Objects that live in modules of the program's own get their finaliser's call.
        for name in [name for name in sys.modules if name not in ours]:
            clear(getattr(sys.modules.get(name), "__dict__", None))
        clear(main)
        gc.collect()
        whole = flush(sys.stdout) and whole
        flush(sys.stderr)
        os._exit(status if whole or status else 120)

    def clear(names):
        """Let go of what a module holds, as the interpreter does: names with an underscore first."""
        if type(names) is not dict:
            return
        for private in (True, False):
            for name in list(names):
                if (name[:1] == "_" and name[1:2] != "_") is private and name != "__builtins__":
                    names[name] = None

    def rehearse():
        """Run a script to nowhere.  Each page that this writes to would else be copied while somebody waits."""
        name = b"rehearsal.py"
        source = b"def f(x): return x + 1\nprint([f(i) for i in range(3)], {1: 2}, f'{3:>4}')\n"
        variables = [name_ + b"=" + value for name_, value in environment.items()]
        order = b"\0" * 16 + b"".join(n.to_bytes(4, "little") for n in (1, 1, len(variables), 0))
        for text in (name, source, name, *variables, b""):
            order += len(text).to_bytes(4, "little") + text + b"\0"
        out, err = os.dup(1), os.dup(2)
        os.dup2(0, 1)
        os.dup2(0, 2)
        before = dict(main)
        sys.argv = prepare(order, -1)
        run(sys.argv[0])
        flush(sys.stdout)
        clear(main)
        gc.collect()
        main.clear()
        main.update(before)
        os.unlink(name)
        for fd, copy in ((1, out), (2, err)):
            os.dup2(copy, fd)
            os.close(copy)

    gc.collect()
    gc.freeze()
    gc.disable()
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, channel_fd)
    # From here on the zygote runs no Python; every line below is a runner's.
    ctypes.pythonapi.PyOS_BeforeFork()
    if library.zygote_serve(channel_fd) != 1:
        os._exit(0)
    after_fork()
    gc.enable()
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        rehearse()
        library.runner_armed()
        data, stdin_fd = receive()
        try:
            sys.argv = prepare(data, stdin_fd)
        except (OSError, ValueError) as error:
            channel.send(b"f\0\0\0\0\0\0\0" + str(error).encode("utf-8", "replace"))
            os._exit(1)
        channel.close()
        for fd in (memory_limit_fd, processes_fd):
            with contextlib.suppress(OSError):  # there may be no group
                os.close(fd)
    except BaseException:
        os._exit(1)
    sys.path[0] = sys.argv[0].rpartition("/")[0]
    finish(run(sys.argv[0]))


_main()
