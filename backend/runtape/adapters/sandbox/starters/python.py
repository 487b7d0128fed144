"""Runs a script as ``python script.py`` would, without the 2 to 4 ms of `site`.

Called as ``python -E -s -S -u python.py LIBRARIES SCRIPT [argument ...]``; LIBRARIES are folders joined by colons,
that of the run's own packages first.  They go behind the standard library, but their ``.pth`` files, and
``sitecustomize``, do not run.  `exit`, `quit` and `help` are provided, since learners use them.  The script runs in the
real ``__main__``, and this file does not show in its tracebacks.
"""


def _run(main: dict) -> None:
    import _sitebuiltins
    import builtins
    import sys

    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    builtins.help = _sitebuiltins._Helper()
    libraries, script = sys.argv[1:3]
    del sys.argv[:2]
    folder = script.rpartition("/")[0]
    sys.path[0] = folder
    sys.path += [path for path in libraries.split(":") if path]
    loader = type(main["__loader__"])("__main__", script)
    del main["_run"]
    main.update(__file__=script, __loader__=loader, __doc__=None)
    failure = None
    try:
        with open(script, "rb") as file:
            source = file.read()
        exec(compile(source, script, "exec", dont_inherit=True), main)
    except (SystemExit, KeyboardInterrupt):
        raise  # the interpreter turns them into its exit status
    except BaseException as error:
        frame = error.__traceback__.tb_next if error.__traceback__ else None
        # A syntax error of the script itself has no frame in it: nothing of ours is to be shown then either.
        failure = error.with_traceback(frame)
        sys.excepthook(type(failure), failure, frame)
    if failure is not None:
        sys.exit(1)


_run(globals())
