"""A warm interpreter that is forked into boxes, and what each fork does: take an order, run its script, end.

Called as ``python -E -s -S -u zygote.py LIBRARY FOLDERS``, with the socket of requests at descriptor 3; FOLDERS are
joined by colons, as for ``python.py``.  Written for every version from 3.7 on.

Theory of operation.  The zygote imports what programs mostly use, freezes the garbage collector, and stays in
`zygote_serve` of LIBRARY (native/zygote.c) for good.  What returns from there is a runner: a fork in a box of its own,
confined.  It tells that it is armed and waits for its order.  Every page that it writes to has to be copied first,
about 2 us each, and Python writes wherever it looks; so when no order comes at once, it uses the time to do everything
that a run will need (`rehearse`).

The first argument of an order is the folder of the run's packages, or empty.  Nothing of it is opened before the
script imports it: ``.pth`` files and ``sitecustomize`` of a package never run.

What a script sees is what ``python script.py`` shows: ``__main__``, its own arguments and environment, no frame of ours
in the traceback of an error, threads joined and ``atexit`` run at the end, global objects finalised.  Only then
`os._exit` saves the teardown of the interpreter, which would write to every page of it.
"""

_PRELOADED = """
_strptime abc argparse ast base64 bisect calendar codecs collections collections.abc contextlib copy csv dataclasses
datetime decimal enum fractions functools glob hashlib heapq html inspect io itertools json keyword linecache locale
logging math numbers operator pathlib pickle platform pprint queue random re secrets select selectors shutil signal
socket statistics string struct subprocess tempfile textwrap threading time tokenize traceback types typing unicodedata
urllib.parse uuid warnings weakref zlib
"""
_REHEARSAL_AFTER_MS = 5


def _main():
    import _sitebuiltins
    import atexit
    import builtins
    import contextlib
    import ctypes
    import gc
    import os
    import sys

    # What modules want done in a forked child is for children of programs.  In a runner it is void, the zygote having
    # one thread and holding no lock, and looking after each lock costs 0.4 ms.  But every runner draws its own numbers.
    hooks = []
    register_at_fork, os.register_at_fork = os.register_at_fork, lambda **hook: hooks.append(hook)
    for name in _PRELOADED.split():
        with contextlib.suppress(ImportError):  # built without it, or of another version
            __import__(name)
    os.register_at_fork = register_at_fork
    logging, random, signal, threading, time = (
        sys.modules[name] for name in ("logging", "random", "signal", "threading", "time")
    )
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    builtins.help = _sitebuiltins._Helper()

    library = ctypes.PyDLL(sys.argv[1])
    library.runner_argument.restype = library.runner_variable.restype = ctypes.c_char_p
    after_fork = ctypes.pythonapi.PyOS_AfterFork_Child
    first_library = len(sys.path)
    sys.path += [path for path in sys.argv[2].split(":") if path]
    environment = dict(os.environb)
    logging_started = vars(logging)["_startTime"]
    ours_in_main = ("_main", "_PRELOADED", "_REHEARSAL_AFTER_MS", "__annotations__")
    pristine = {name: value for name, value in globals().items() if name not in ours_in_main}

    def fresh_main():
        """Return the names of a new ``__main__``: of the real one our functions hold on to, so it would never go."""
        module = sys.modules["__main__"] = type(sys)("__main__")
        module.__dict__.update(pristine)
        return module.__dict__

    def run(script):
        """Run the script in `__main__`; return its exit status, or the negative number of the signal to die of."""
        main = fresh_main()
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
            return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF
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
            threading._shutdown()
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        atexit._run_exitfuncs()
        whole = flush(sys.stdout)
        flush(sys.stderr)
        if status < 0:
            signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        # Objects that live in modules of the program's own get their finaliser's call, while those are still whole.
        for name in [name for name in sys.modules if name not in ours or name == "__main__"]:
            del sys.modules[name]
        gc.collect()
        whole = flush(sys.stdout) and whole
        flush(sys.stderr)
        os._exit(status if whole or status else 120)

    def rehearse():
        """Run a script to nowhere."""
        script = "rehearsal.py"
        with open(script, "w") as file:
            file.write("def f(x): return x + 1\nprint([f(i) for i in range(3)], {1: 2}, f'{3:>4}')\n")
        out, err = os.dup(1), os.dup(2)
        os.dup2(0, 1)
        os.dup2(0, 2)
        run(script)
        flush(sys.stdout)
        del sys.modules["__main__"]
        gc.collect()
        fresh_main()
        os.unlink(script)
        for fd, copy in ((1, out), (2, err)):
            os.dup2(copy, fd)
            os.close(copy)

    def texts(text_at):
        found = []
        text = text_at(0)
        while text is not None:
            found.append(text)
            text = text_at(len(found))
        return found

    def take_order():
        """Return whether there is a script to run, with arguments and environment as the order has them."""
        if not library.runner_take_order():
            return False
        layer, *sys.argv = [os.fsdecode(text) for text in texts(library.runner_argument)]
        if layer:
            sys.path.insert(first_library, layer)
        sys.path[0] = sys.argv[0].rpartition("/")[0]
        wanted = dict(text.split(b"=", 1) for text in texts(library.runner_variable))
        if wanted != environment:
            for name in environment.keys() - wanted.keys():
                del os.environb[name]
            os.environb.update(wanted)
            if b"TZ" in wanted:
                time.tzset()
        # What the interpreter notes at its start is of this moment.
        sys.orig_argv = [sys.executable, *sys.argv]
        vars(logging)["_startTime"] = time.time_ns() if isinstance(logging_started, int) else time.time()
        main_thread = threading.main_thread()
        if hasattr(main_thread, "_set_native_id"):
            main_thread._set_native_id()
        return True

    fresh_main()
    ours = frozenset(sys.modules)
    gc.collect()
    gc.freeze()
    gc.disable()
    # From here on the zygote runs no Python; every line below is a runner's.
    ctypes.pythonapi.PyOS_BeforeFork()
    if library.zygote_serve(3) != 1:
        os._exit(0)
    try:
        after_fork()
        gc.enable()
        for hook in hooks:
            register_at_fork(**hook)
        random.seed()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if not library.runner_armed(_REHEARSAL_AFTER_MS):
            rehearse()
        if not take_order():
            os._exit(1)
    except BaseException:
        os._exit(1)
    finish(run(sys.argv[0]))


_main()
