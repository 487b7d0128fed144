"""A package index in a folder, with one hostile package: all that can run by itself in it reports that it does.

What runs in a box says so on its stdout; what runs outside is seen by the lures (`lures.Bait.touched`).
"""

import tempfile
import zipfile
from pathlib import Path
from typing import Final

NAME: Final = "runtape-prove-package"
_MODULE: Final = "runtape_prove_package"
_RUNS: Final = (
    'import glob, os; os.write(1, b\'prove: {"leak": "code of a package ran by itself"}\\n\'); '
    "[open(path, 'w').write('changed') for path in "
    f"glob.glob('{tempfile.gettempdir()}/runtape-prove-*/outside-*/file')]\n"
)
_INFO: Final = f"{_MODULE}-1.0.dist-info"
_FILES: Final = {
    f"{_MODULE}/__init__.py": "folder = __path__[0].rpartition('/')[0]\n",
    f"{_MODULE}.pth": _RUNS,
    "sitecustomize.py": _RUNS,
    "usercustomize.py": _RUNS,
    "setup.py": _RUNS,
    f"{_INFO}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n",
    f"{_INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: runtape\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def write_index(folder: Path) -> str:
    """Write the index into `folder`, which is made, and return its address."""
    project = folder / NAME
    project.mkdir(parents=True)
    wheel = f"{_MODULE}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(project / wheel, "w") as archive:
        for path, content in _FILES.items():
            archive.writestr(path, content)
        archive.writestr(f"{_INFO}/RECORD", "".join(f"{path},,\n" for path in (*_FILES, f"{_INFO}/RECORD")))
    (project / "index.html").write_text(f'<!doctype html><html><body><a href="{wheel}">{wheel}</a></body></html>')
    return folder.as_uri()
