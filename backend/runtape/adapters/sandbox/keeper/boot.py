"""Entry point of the keeper process: ``python -I -S boot.py CONTROL_FD LOCK_FD``.

Imports the package that it lies in by its bare name, `keeper`, which leaves `runtape` unimported.
"""

import importlib
import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
importlib.import_module("keeper.service").main(control_fd=int(sys.argv[1]), lock_fd=int(sys.argv[2]))
