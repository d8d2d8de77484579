"""The walls: who may import what, what no process may load, and how long a file may grow."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each rung may import what stands on the rungs before it; rooms on one rung do not know each other.
LADDER = (
    ("errors", "schema", "identity"),
    ("activity", "consent", "privacy", "kernels", "snapshot", "live", "evaluation"),
    ("policy", "two_tower", "ranking"),
    ("serving", "jobs"),
)
# The foundation is one rung by the design, yet schema and errors are known to each of its own files.
FOUNDATION = set(LADDER[0])
# Two rooms stand above another one of their own rung: ranking scores what two_tower encodes.
NEIGHBOURS = {("ranking", "two_tower")}
SERVING_NEVER = {"activity", "two_tower", "ranking"}
OWNERS = {
    "torch": {"two_tower", "jobs"},
    "safetensors": {"two_tower"},
    "ray": {"jobs"},
    "hydra": {"jobs", "serving"},
    "grpc": {"serving", "bodega", "jobs"},
    "cupy": {"kernels", "jobs"},
    "triton": {"kernels"},
    "polars": {"activity", "two_tower", "jobs"},
    "sqlalchemy": {"consent", "serving"},
    "psycopg": {"consent"},
}
# Where an owner may import only inside a function, because the room must work without it.
LAZY = {"kernels": {"torch", "cupy", "triton"}, "jobs": {"torch", "cupy", "ray", "hydra"}}
LONGEST = 380  # about 350; a little over is no reason to tear an idea apart


def sources() -> list[Path]:
    found = [path for room in ("engine", "jobs", "proto/bodega") for path in (ROOT / room).rglob("*.py")]
    return [path for path in found if "_pb2" not in path.name]


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "bodega" if parts[0] == "proto" else parts[0] if parts[0] == "jobs" else parts[1]


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules a file names, and whether it does so at the top."""
    tree = ast.parse(path.read_text())
    inside = {
        id(each)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for each in ast.walk(node)
    }
    typed = {
        id(each)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for each in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from engine import schema` names the room in the alias
            names = [f"engine.{alias.name}" for alias in node.names] if node.module == "engine" else [node.module]
            found += [(name, id(node) not in inside) for name in names]
    return found


def rung(room: str) -> int:
    return next(height for height, rooms in enumerate(LADDER) if room in rooms)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_import_ladder_holds(path):
    room = room_of(path)
    for module, _ in imports(path):
        top, _, rest = module.partition(".")
        if top == "bodega":
            assert room in {"serving", "jobs", "bodega"}, f"{path} imports {module}"
        target = rest.split(".")[0] if top == "engine" else top if top == "jobs" else ""
        if room == "bodega":
            assert top not in {"engine", "jobs"}, f"the client imports {module}"
        if not target or target == room or room == "bodega" or (not rest and top == "engine"):
            continue
        assert target != "serving" or room == "serving", f"{path} imports {module}"
        if room in FOUNDATION:
            assert target in FOUNDATION, f"{path} imports {module}"
            continue
        allowed = rung(target) < rung(room) or (room, target) in NEIGHBOURS
        assert allowed, f"{path.relative_to(ROOT)}: {room} may not import {module}"
        assert not (room == "serving" and target in SERVING_NEVER), f"serving may not import {module}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_heavy_library_has_its_owners(path):
    room = room_of(path)
    for module, at_the_top in imports(path):
        library = module.split(".")[0]
        if library in LAZY.get(room, ()):
            assert not at_the_top, f"{path} imports {library} at the top: {room} must load without it"
        elif library in OWNERS:
            assert room in OWNERS[library], f"{path} imports {library}, which {OWNERS[library]} own"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_holds_one_idea(path):
    assert len(path.read_text().splitlines()) <= LONGEST, f"{path} wants to be two"
    assert "util" not in path.stem and "helper" not in path.stem


EVERY_RPC = """
import sys
from pathlib import Path

import grpc
from bodega.v1 import admin_pb2, consent_pb2, feedback_pb2, ranking_pb2
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.serving.server import Server
from engine.serving.settings import load
from tests.serving.shop import Shop

folder = Path(sys.argv[1])
Shop(folder).publish()
server = Server(load([f"out={folder}", "port=0"]))
port = server.start()
called = []
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    for file in (ranking_pb2, consent_pb2, feedback_pb2, admin_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                kind = message_factory.GetMessageClass(method.output_type)
                call = channel.unary_unary(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=lambda request: request.SerializeToString(),
                    response_deserializer=kind.FromString,
                )
                try:
                    call(message_factory.GetMessageClass(method.input_type)(), timeout=5)
                    called.append(f"{method.name}:OK")
                except grpc.RpcError as error:
                    called.append(f"{method.name}:{error.code().name}")
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert health.status == health_pb2.HealthCheckResponse.SERVING, health
server.stop()
print(" ".join(called))
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "ray", "cupy", "triton"})
assert not heavy, heavy
"""


def test_serving_answers_every_call_without_torch_ray_cupy_or_triton(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", EVERY_RPC, str(tmp_path)],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answered = dict(pair.split(":") for pair in done.stdout.splitlines()[-1].split())
    assert len(answered) >= 17
    assert answered["Recommend"] == answered["GetStatus"] == "OK"
    assert "INTERNAL" not in answered.values() and "UNKNOWN" not in answered.values(), answered


def test_importing_a_room_touches_no_device_network_or_disk():
    code = "import engine.kernels.top_k, engine.kernels.rerank, engine.policy, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_two_test_files_share_a_name():
    """pytest imports them by their name alone: of two, one cannot be collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
