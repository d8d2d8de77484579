"""Make the Python stubs beside the protos, or check that the committed ones are what the protos give.

python proto/generate.py            write *_pb2.py, *_pb2.pyi, *_pb2_grpc.py
python proto/generate.py --check    exit 1 and name each stub that is stale, missing or orphaned
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("bodega/v1")
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def generate(target: Path) -> None:
    """Write the stubs of every proto of the package under `target`.

    Raises:
        SystemExit: the dev extra is missing, or protoc refuses a proto.
    """
    try:
        from grpc_tools import protoc  # type: ignore[import-untyped]
    except ImportError:
        sys.exit("grpc_tools is missing. Remedy: make setup, which installs the dev extra.")
    # protoc looks its mypy plugin up on PATH, where a virtual environment that was not activated is not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    protos = sorted(str(proto.relative_to(ROOT)) for proto in (ROOT / PACKAGE).glob("*.proto"))
    outputs = (f"--python_out={target}", f"--grpc_python_out={target}", f"--mypy_out=quiet:{target}")
    code = protoc.main(["protoc", f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}", *outputs, *protos])
    if code:
        sys.exit(f"protoc failed with exit code {code}.")


def stubs(root: Path) -> dict[str, bytes]:
    """Content of each stub under `root`, by file name."""
    return {file.name: file.read_bytes() for file in (root / PACKAGE).iterdir() if file.name.endswith(SUFFIXES)}


def main() -> int:
    """Generate in a temporary folder, then compare with what is committed or take its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 where a stub is stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = stubs(Path(folder)), stubs(ROOT)
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    for name in stale:
        path = ROOT / PACKAGE / name
        if check:
            print(f"{path.relative_to(ROOT.parent)} is not what the protos give. Remedy: make proto", file=sys.stderr)  # noqa: T201
        elif name in fresh:
            path.write_bytes(fresh[name])
        else:
            path.unlink()
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
