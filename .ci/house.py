"Keeps the house in order: `python .ci/house.py exports | floors | readme`. Each check ends with one line, or fails with what to do."
import ast
import filecmp
import json
import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parents[1]
bin_dir = Path(sys.executable).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(root / "settings.ini", encoding="utf-8")
lib_name = parser["DEFAULT"]["lib_name"]


def notebooks(folder=root):
    return sorted(p for p in (folder / "nbs").glob("*.ipynb"))


def readme(folder=root):
    "README.md is `nbs/index.ipynb` as markdown; pictures of `nbs/images` are found from the root."
    nb = json.loads((folder / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    nb["cells"] = [c for c in nb["cells"] if not "".join(c["source"]).startswith("#| hide")]
    for c in nb["cells"]:
        if "".join(c["source"]).startswith("#| echo: false"): c["metadata"]["tags"] = ["remove-input"]
    nb["metadata"]["language_info"] = {"name": "python"}
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "index.ipynb"
        page.write_text(json.dumps(nb), encoding="utf-8")
        subprocess.run([bin_dir / "jupyter", "nbconvert", "--log-level=ERROR", "--to", "markdown", "--output-dir", folder, "--output", "README",
                        "--TagRemovePreprocessor.enabled=True", "--TagRemovePreprocessor.remove_input_tags=remove-input", page], check=True)
    path = folder / "README.md"
    text = re.sub(r"\]\((images/[^)]+)\)", r"](nbs/\1)", path.read_text(encoding="utf-8"))
    text = re.sub(r"\]\(((?:\d\d_\w+|index)\.ipynb)\)", r"](nbs/\1)", text)
    path.write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8")


def exports():
    "Notebooks and generated files agree, and notebooks are clean: everything is made again in a copy and compared."
    problems = [f"{nb.name}: {p}" for nb in notebooks() for p in untidy(nb)]
    with tempfile.TemporaryDirectory() as copy:
        copy = Path(copy) / root.name
        keep = shutil.ignore_patterns(".git", ".venv", "demo", "runs", "__pycache__", "*.egg-info")
        shutil.copytree(root, copy, ignore=keep)
        for old in [*(copy / lib_name).glob("*.py"), copy / "README.md"]:
            if old.name != "__init__.py": old.unlink()
        subprocess.run([bin_dir / "nbdev_export"], cwd=copy, check=True)
        subprocess.run([bin_dir / "nbdev_clean"], cwd=copy, check=True)
        readme(copy)
        made = {p.relative_to(copy) for p in [*(copy / lib_name).glob("*.py"), *notebooks(copy), copy / "README.md"]}
        here = {p.relative_to(root) for p in [*(root / lib_name).glob("*.py"), *notebooks(), root / "README.md"]}
        problems += [f"{p}: nothing generates this file" for p in sorted(here - made)]
        problems += [f"{p}: is missing or differs from what the notebooks give" for p in sorted(made)
                     if not (root / p).exists() or not filecmp.cmp(root / p, copy / p, shallow=False)]
    report("exports", problems, f"{len(made)} files agree with the notebooks", "run `make export` and commit the result")


def untidy(path):
    "What nbdev_clean lets through: widget state, stderr, missing ids, paths of a machine, large outputs."
    text = path.read_text(encoding="utf-8")
    nb = json.loads(text)
    outputs = [o for c in nb["cells"] for o in c.get("outputs", [])]
    if "widgets" in nb["metadata"]: yield "widget state is saved"
    if any("id" not in c for c in nb["cells"]): yield "a cell has no id"
    if any(o.get("name") == "stderr" for o in outputs): yield "stderr is saved"
    if any(o["output_type"] == "error" for o in outputs): yield "an error is saved as output"
    if re.search(r"/(home|root|Users)/\w|/tmp/\w", text): yield "names a path of a machine"
    if (size := len(json.dumps(outputs))) > 1_000_000: yield f"{size // 1000} kB of outputs"
    long = [c["id"] for c in nb["cells"] if c["cell_type"] == "code" and len(c["source"]) > 20]
    if long: yield f"cells {long} have more than 20 lines"


def floors():
    "A module imports only from lower floors: the number of its notebook is its floor."
    floor = {}
    for nb in notebooks():
        name = re.search(r"#\|\s*default_exp\s+(\w+)", nb.read_text(encoding="utf-8"))
        if name and (number := re.match(r"\d+", nb.name)): floor[name[1]] = int(number[0])
    problems = []
    for module, own in sorted(floor.items(), key=lambda item: item[1]):
        for line, other in imported(root / lib_name / f"{module}.py"):
            if floor.get(other, own) >= own:
                problems.append(f"{module}.py:{line}: floor {own:02} imports {other}, floor {floor.get(other, '?')}")
    report("floors", problems, f"{len(floor)} modules import only from lower floors", "move the code, or the notebook's number")


def imported(path):
    "(line, module) of each import from this library, wherever in the file it stands."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level or parts[0] == lib_name:
                inner = parts if node.level else parts[1:]
                names = inner[:1] if inner and inner[0] else [a.name for a in node.names]
                yield from ((node.lineno, n) for n in names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name.split(".")[1]) for a in node.names if a.name.startswith(f"{lib_name}."))


def report(name, problems, good, advice):
    if problems: sys.exit(f"{name}: {len(problems)} problems; {advice}\n" + "\n".join(f"  {p}" for p in problems))
    print(f"{name}: {good}")


if __name__ == "__main__":
    commands = {f.__name__: f for f in (exports, floors, readme)}
    if len(sys.argv) != 2 or sys.argv[1] not in commands: sys.exit(f"usage: python .ci/house.py {' | '.join(commands)}")
    commands[sys.argv[1]]()
