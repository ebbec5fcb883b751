"""Who may import whom, what a host need not install, and what the wheel holds."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "steadyhand_firmware": ROOT / "firmware_cfg",
    "steadyhand_models": ROOT / "models",
    "steadyhand_runtime": ROOT / "runtime",
    "steadyhand_training": ROOT / "training",
}
MAY_IMPORT = {
    "steadyhand_firmware": set(),
    "steadyhand_models": set(),
    "steadyhand_runtime": {"steadyhand_firmware", "steadyhand_models"},
    "steadyhand_training": {"steadyhand_models"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package):
    for path in (PACKAGES[package] / package).rglob("*.py"):
        ours = {n.split(".")[0] for n in imported(path) if n.startswith("steadyhand_")} - {package}
        assert ours <= MAY_IMPORT[package], f"{path} imports {ours - MAY_IMPORT[package]}"


def test_the_runtime_never_touches_the_networks():
    for path in (ROOT / "runtime").rglob("*.py"):
        assert not any(n.startswith("steadyhand_models.nets") for n in imported(path)), path


def test_torch_stays_inside_the_networks_of_the_shared_package():
    for path in (ROOT / "models").rglob("*.py"):
        if "nets" not in path.parts:
            assert not any(n.split(".")[0] == "torch" for n in imported(path)), path


def test_nothing_is_unpickled_or_evaluated():
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            # torch.load(weights_only=True) raises pickle's error class without unpickling objects.
            unpicklers = imported(path) & {"cloudpickle", "dill", "marshal", "shelve"}
            assert not unpicklers and "import pickle" not in text and "pickle.load" not in text, path
            assert "weights_only=False" not in text, path
            assert "allow_pickle=True" not in text, path


def loaded_by(module: str, *heavy: str) -> list[str]:
    code = f"import sys, {module}; print(','.join(m for m in {heavy!r} if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [name for name in result.stdout.strip().split(",") if name]


@pytest.mark.parametrize(
    "module", ["steadyhand_runtime.control_process", "steadyhand_runtime.link", "steadyhand_runtime.daemon"]
)
def test_the_runtime_loads_neither_torch_nor_mujoco(module):
    assert loaded_by(module, "torch", "mujoco", "matplotlib") == []


def test_the_bus_process_loads_no_inference_engine():
    assert loaded_by("steadyhand_runtime.bus.loop", "torch", "mujoco", "onnxruntime") == []


def test_the_workstation_needs_neither_serial_port_nor_keyboard():
    assert loaded_by("steadyhand_training.trainer", "serial", "pynput", "mujoco", "steadyhand_runtime") == []


@pytest.mark.slow
def test_the_wheel_holds_the_four_packages_and_their_data(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "-o", str(tmp_path), str(ROOT)], check=True, capture_output=True
    )
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    tops = {n.split("/")[0] for n in names if not n.split("/")[0].endswith(".dist-info")}
    assert tops == set(PACKAGES)
    for wanted in (
        "steadyhand_models/tasks/lift.toml",
        "steadyhand_models/nets/encoder.py",
        "steadyhand_firmware/sts3215.toml",
    ):
        assert wanted in names
