"""Prints three lines, one each half second, so that one can see them arrive."""

import platform
import time

print(f"Hello from Python {platform.python_version()} in a sandbox.", flush=True)
for number in (1, 2):
    time.sleep(0.5)
    print(f"{number * 0.5} s later, still running", flush=True)
