"""Adds up the numbers on standard input: seq 100 | ./runtape run examples/sum.py"""

import sys

print(sum(float(word) for line in sys.stdin for word in line.split()))
