import sys
import time

case, *rest = sys.argv[1:]
if case == "stdin":
    for line in sys.stdin:
        print("got", line.rstrip("\n"))
elif case == "args":
    for each in rest:
        print(f"[{each}]")
elif case == "files":
    with open("data/in.txt", encoding="utf-8") as file:
        print(file.read(), end="")
elif case == "text":
    print("žluťoučký 雪 🎉")
elif case == "exit":
    sys.exit(7)
elif case == "stderr":
    print("to stdout")
    print("to stderr", file=sys.stderr)
elif case == "uncaught":
    raise RuntimeError("boom")
elif case == "sleep":
    time.sleep(60)
elif case == "hog":
    held = []
    while True:
        held.append(bytearray(4 << 20))
elif case == "flood":
    sys.stdout.write("".join(f"{n:09d}\n" for n in range(1_000_000)))
