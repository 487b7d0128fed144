"""What a program shows with matplotlib is kept as pictures, with the real library."""

import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtape.adapters.sandbox import LocalSandbox, local
from runtape.adapters.sandbox.runtimes import detect
from runtape.domain.limits import Limits
from tests.sandbox.conftest import WAYS, is_made
from tests.sandbox.interpreters import interpreter_with
from tests.sandbox.runs import Left, left_by

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("patience", "sandbox", "matplotlib")]
PNG = b"\x89PNG\r\n\x1a\n"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\n"


@pytest.fixture(scope="module")
def prefix() -> Iterator[Path]:
    with interpreter_with("matplotlib") as prefix:
        yield prefix


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WAYS)
async def plotting(
    prefix: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LocalSandbox]:
    """A sandbox in which Python has matplotlib."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "detect", functools.partial(detect, [str(prefix / "bin")]))
        async with LocalSandbox(tmp_path_factory.mktemp("plotting"), **WAYS[request.param]) as opened:
            await is_made(opened, request.param)
            yield opened


async def shown_by(sandbox: LocalSandbox, script: str, **how: object) -> Left:
    left = await left_by(sandbox, script, limits=Limits(wall_s=60, cpu_s=60, memory_mb=512), **how)
    assert left.ended.outcome.exit_code == 0, left
    assert left.left_out == {}
    return left


async def test_shown_figures_are_kept_as_pictures(plotting: LocalSandbox) -> None:
    left = await shown_by(
        plotting,
        PLOT + "plt.show()\nassert not plt.get_fignums()\n"
        "plt.figure(); plt.plot([2, 1]); plt.figure(); plt.show(block=True)\n"
        "plt.plot([3]); plt.savefig('out/own.png'); plt.show(block=False); assert plt.get_fignums()\n",
    )
    assert sorted(left.files) == [*(f"figure-{number}.png" for number in range(1, 5)), "own.png"]
    assert all(content.startswith(PNG) for content in left.files.values())
    assert len(set(left.files.values())) == 4  # the last was saved twice


async def test_another_folder_and_what_is_there_already_are_no_obstacle(plotting: LocalSandbox) -> None:
    script = "import os\nos.symlink('/etc/x', 'out/figure-1.png'); os.unlink('out/figure-1.png')\n"
    script += "open('out/figure-1.png', 'w').write('mine')\nos.chdir('/tmp')\n" + PLOT + "plt.show()\n"
    left = await shown_by(plotting, script)
    assert left.files["figure-1.png"] == b"mine"
    assert left.files["figure-2.png"].startswith(PNG)


async def test_program_that_chooses_another_backend_has_that(plotting: LocalSandbox) -> None:
    script = PLOT + "import matplotlib\nassert matplotlib.get_backend().lower() == 'svg'\nplt.savefig('out/a.svg')\n"
    assert [*(await shown_by(plotting, script, env={"MPLBACKEND": "svg"})).files] == ["a.svg"]
    chosen = "import matplotlib\nmatplotlib.use('svg')\n"
    assert [*(await shown_by(plotting, chosen + script)).files] == ["a.svg"]


async def test_nothing_is_imported_for_programs_that_do_not_plot(plotting: LocalSandbox) -> None:
    script = "import sys\nassert not {'matplotlib', 'numpy', 'runtape_figures'} & set(sys.modules)\n"
    assert (await shown_by(plotting, script)).files == {}
