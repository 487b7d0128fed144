"""Programs that show when they began and that they lived, for `tests.process.invariants`."""

_TICKING = """
import os, time
def say(text): os.write(1, text.encode() + b"\\n")
say(f"begin {os.urandom(8).hex()} {time.monotonic_ns()}")
for _ in range(STEPS):
    time.sleep(PAUSE)
    say(f"at {time.monotonic_ns()}")
say("done")
"""


def ticking(steps: int, pause_s: float, mark: object = "") -> str:
    """Return a Python program that prints `steps` times, `pause_s` apart; `mark` makes it unlike others."""
    return f"# {mark}{_TICKING}".replace("STEPS", str(steps)).replace("PAUSE", str(pause_s))
