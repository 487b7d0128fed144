"""Never ends by itself: stop it with Ctrl-C, or let a limit do it (--timeout 2)."""

import itertools
import time

for second in itertools.count(1):
    time.sleep(1)
    print(f"running for {second} s", flush=True)
