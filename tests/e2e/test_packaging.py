"""What a user installs: the wheel and the sdist, each in an empty environment with the core dependencies only."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("export", "quant", "runtime_stubs", "targets", "tools")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of `command`; the test fails with everything it printed when its exit status is not 0."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`sdist`, and `wheel` built from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    for kind in ("sdist", "wheel"):
        run(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return {"sdist": next(folder.glob("*.tar.gz")), "wheel": next(folder.glob("*.whl"))}


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(
    request: pytest.FixtureRequest, distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The `bin` folder of a new environment that holds one distribution without its extras."""
    home = tmp_path_factory.mktemp(request.param)
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", distributions[request.param], cwd=home)
    return home / "bin"


def test_wheel_holds_nothing_outside_isobit(distributions: dict[str, Path]) -> None:
    names = zipfile.ZipFile(distributions["wheel"]).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"isobit"}


def test_wheel_holds_every_source_and_data_file(distributions: dict[str, Path]) -> None:
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
    expected = {f"isobit/{path.relative_to(ROOT)}" for path in files if "__pycache__" not in path.parts}
    assert expected - set(zipfile.ZipFile(distributions["wheel"]).namelist()) == set()


@pytest.mark.parametrize("argument", ["--help", "targets"])
def test_command_works_without_extras(installed: Path, argument: str, tmp_path: Path) -> None:
    assert run(installed / "isobit", argument, cwd=tmp_path)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_install_below_isobit_only(installed: Path, folder: str, tmp_path: Path) -> None:
    program = (
        "import importlib, importlib.util, sys\n"
        "importlib.import_module(f'isobit.{sys.argv[1]}')\n"
        "assert importlib.util.find_spec(sys.argv[1]) is None, 'a top-level package is installed'"
    )
    run(installed / "python", "-c", program, folder, cwd=tmp_path)


def test_help_imports_neither_torch_nor_tvm(tmp_path: Path) -> None:
    """In the development environment, where both are there to be imported."""
    program = (
        "import sys\n"
        "from isobit.tools.cli import main\n"
        "sys.argv = ['isobit', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "loaded = {'torch', 'tvm'} & set(sys.modules)\n"
        "assert not loaded, f'isobit --help imports {loaded}'"
    )
    run(sys.executable, "-c", program, cwd=tmp_path)
