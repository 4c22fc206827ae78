"""The house: a module imports only from lower floors, siblings do not import each other."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rlaif"
FLOORS = (
    ("redact",),
    ("errors", "types", "progress", "interrupts"),
    ("files", "yamlfile"),
    ("constitution", "templates", "datasets", "gold", "callstore", "config"),
    ("models",),
    ("sample", "revise", "judge", "preferences", "arms", "train", "rows"),
    ("evaluate", "workspace"),
    ("stages",),
    ("recipe",),
    ("plan",),
    ("cli",),
    ("__main__",),
)
FLOOR = {unit: height for height, units in enumerate(FLOORS) for unit in units}
HEAVY = {"torch", "transformers", "accelerate", "peft", "trl", "gguf", "tokenizers", "safetensors"}
SDK_FILES = {"openai": "openai_compatible.py", "anthropic": "anthropic_messages.py"}


def _unit(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def _imports(path: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            if module == "rlaif":
                found += [(f"rlaif.{alias.name}", node.lineno) for alias in node.names]
            else:
                found.append((module, node.lineno))
    return found


def _modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def test_every_module_has_a_floor() -> None:
    assert {_unit(p) for p in _modules()} == set(FLOOR)


def test_a_module_imports_only_from_lower_floors() -> None:
    wrong = []
    for path in _modules():
        own = _unit(path)
        for name, line in _imports(path):
            if not name.startswith("rlaif.") or name == "rlaif.__version__":
                continue
            other = name.split(".")[1]
            if other != own and FLOOR[other] >= FLOOR[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_stage_imports_another_stage() -> None:
    wrong = [
        f"{path.name}:{line} imports {name}"
        for path in (PACKAGE / "stages").glob("[a-z]*.py")
        for name, line in _imports(path)
        if name.startswith("rlaif.stages.") and not name.startswith("rlaif.stages._")
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_and_transformers_are_imported_only_by_the_training_half() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _modules()
        if _unit(path) != "train"
        for name, line in _imports(path)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_a_vendor_sdk_is_imported_only_by_its_provider() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _modules()
        for name, line in _imports(path)
        if path.name != SDK_FILES.get(name.split(".")[0], path.name)
    ]
    assert not wrong, "\n".join(wrong)


def test_help_imports_neither_torch_nor_a_vendor_sdk() -> None:
    code = (
        "import sys, rlaif.cli; "
        "print([m for m in ('torch', 'transformers', 'openai', 'anthropic', 'pydantic', 'scipy') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_loading_every_recipe_needs_neither_torch_nor_scipy() -> None:
    code = (
        "import sys\n"
        "from rlaif.recipe import kind_of, load_as, load_run, recipes\n"
        "human = 'human.path=pairs.jsonl'\n"
        "given = {\n"
        "    'rlhf-vs-rlaif': [human, 'judge.model=fake/shorter'],\n"
        "    'lee-tables': [human, 'judge.models=[fake/shorter]'],\n"
        "}\n"
        "for name in recipes():\n"
        "    if kind := kind_of(name, None): load_as(kind, name, given[name], None)\n"
        "    else: load_run(name, [], None)\n"
        "print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
