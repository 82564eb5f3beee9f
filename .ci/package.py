"""The package as a user gets it: built, looked into, installed into empty environments, used from outside the tree.

``python .ci/package.py``; everything happens in a temporary folder. Each extra is installed alone and imported.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {  # and what proves that it is there; accelerators and tools of developers apart
    "xarray": "import xarray, netCDF4",
    "data": "import sklearn",
    "ode": "import diffrax",
    "pickle": "import cloudpickle",
    "dask": "import distributed, cloudpickle",
    "zarr": "import zarr, xarray, dask",
}
OTHER = {"cuda13", "tpu", "dev", "docs"}
TYPED = """
import vgjax as vg
net: vg.Network = vg.mlp(width=4, depth=2, inputs=3)
wrong: int = vg.mlp(width=4, depth=2, inputs=3)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command, without this tree on its path; an error ends everything."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    found = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{found.stdout}{found.stderr}")
    return found.stdout


def built(folder: Path) -> tuple[Path, Path]:
    """Wheel and sdist; the wheel is made of the sdist."""
    env = environment(folder / "build")
    install(env, "build")
    run(env, "-m", "build", "--outdir", folder / "dist", ROOT, cwd=folder)
    (wheel,), (sdist,) = (list((folder / "dist").glob(f"*.{suffix}")) for suffix in ("whl", "tar.gz"))
    return wheel, sdist


def environment(folder: Path, base: Path | None = None) -> Path:
    """The Python of an empty environment, or of one that sees what is in another and can add to it."""
    venv.create(folder, with_pip=True)
    env = folder / "bin" / "python"
    if base is not None:
        (site(env) / "base.pth").write_text(f"{site(base)}\n")
    return env


def site(env: Path) -> Path:
    """Where its packages are."""
    return Path(run(env, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=env.parent).strip())


def install(env: Path, *what: str | Path) -> None:
    """From the registry, without compiling what may never be imported."""
    run(env, "-m", "pip", "install", "--quiet", "--no-compile", *what, cwd=env.parent)


def look_into(wheel: Path, sdist: Path) -> None:
    """All of the library, its page and its marker of types; no tests, figures or data."""
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "vgjax").rglob("*") if path.is_file()}
    sources = {name for name in sources if "__pycache__" not in name}
    assert sources <= names, sorted(sources - names)
    others = {name for name in names - sources if ".dist-info/" not in name}
    assert not others, sorted(others)
    assert "vgjax/py.typed" in names
    with tarfile.open(sdist) as packed:
        kept = {name.partition("/")[2] for name in packed.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "CHANGELOG.md", "CITATION.cff"} <= kept, sorted(kept)[:20]


def use(wheel: Path, folder: Path, base: Path) -> None:
    """The README's quickstart from the wheel, the command line, and types as another project sees them."""
    env = environment(folder / "use", base)
    install(env, f"{wheel}[data]", "mypy")
    where = run(env, "-c", "import vgjax; print(vgjax.__file__)", cwd=folder).strip()
    assert where.startswith(str(folder)), where
    options = "doctest.NORMALIZE_WHITESPACE"
    code = f"import doctest; print(doctest.testfile({str(ROOT / 'README.md')!r}, False, optionflags={options}))"
    said = run(env, "-c", code, cwd=folder)
    assert re.search(r"failed=0, attempted=(1[5-9]|[2-9]\d)", said), said
    assert "chaotic" in run(base.parent / "vgjax", "theory", "--sigma-w", "1.5", cwd=folder)
    (folder / "typed.py").write_text(TYPED)
    checked = subprocess.run(
        [str(env), "-m", "mypy", "typed.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert re.findall(r"typed.py:(\d+): error", checked.stdout) == ["4"], checked.stdout


def extras(wheel: Path, folder: Path, base: Path) -> None:
    """Each alone, beside the library and nothing else."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*said} == {*EXTRAS} | OTHER, sorted({*said} ^ ({*EXTRAS} | OTHER))
    for name, proof in EXTRAS.items():
        env = environment(folder / name, base)
        install(env, f"{wheel}[{name}]")
        run(env, "-c", f"import vgjax; {proof}", cwd=folder)
        print(f"{name}: installed alone and imported")


def main() -> None:
    """One after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        wheel, sdist = built(folder)
        look_into(wheel, sdist)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e3:.0f} kB")
        base = environment(folder / "plain")
        install(base, wheel)
        use(wheel, folder, base)
        print("used from the wheel")
        extras(wheel, folder, base)


if __name__ == "__main__":
    main()
