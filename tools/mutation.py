"""Which mistakes would the tests miss? Mutate modules with mutmut, run their tests, print a table.

mutmut makes the mutants and runs the tests, in forks of one process that imports torch once. It knows
one list of tests for a whole project, though, and prints no score: here each module has its own tests,
and they decide which of its mutants count as killed.

    python tools/mutation.py losses ppo              # or: make mutants MODULES="losses ppo"
    python tools/mutation.py --survivors losses ppo  # once more, only those that no test killed

mutmut leaves code outside of functions alone, and functions with a decorator.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import tomli_w

# The modules below src/reftune that are scored, and the files of tests that belong to each.
TESTS = {
    "training.advantages": ["test_advantages", "test_ppo_targets"],
    "training.losses": ["test_losses", "test_policy_losses"],
    "training.importance": ["test_importance"],
    "training.learner": ["test_learner"],
    "training.value_features": ["test_value_features"],
    "training.value_regression": ["test_value_regression"],
    "model.value_head": ["test_value_head"],
    "training.rollouts": ["test_rollouts"],
    "stages.ppo.step": ["test_ppo", "test_start"],
    "stages.ppo.critic": ["test_ppo_critic"],
    "stages.ppo.targets": ["test_ppo_targets"],
    "stages.ppo.metrics": ["test_ppo_targets", "test_ppo"],
    "stages.ppo.update": ["test_ppo_update", "test_recipes"],
    "stages.ppo.loss": ["test_ppo_update", "test_recipes"],
    "stages.supervised": ["test_supervised"],
    "stages.stage": ["test_stage", "test_run"],
    "stages.run": ["test_run"],
    "pipeline": ["test_pipeline"],
    "grading.grade_file": ["test_grading"],
    "evaluation.statistics": ["test_statistics"],
}

ROOT = Path(__file__).resolve().parents[1]
# The last is mutmut's word where a KeyboardInterrupt that a test provokes gets out of the test.
KILLED = ("killed", "segfault", "check was interrupted by user")
ROW = "{:<24}{:>9}{:>9}{:>10}{:>10}{:>9}"


def main() -> None:
    """Mutate the modules named on the command line, or all, and print what survived."""
    parser = argparse.ArgumentParser(description="Mutate modules and run their tests.")
    parser.add_argument("modules", nargs="*", help=f"default: {' '.join(TESTS)}")
    parser.add_argument("--survivors", action="store_true", help="only those of the last run")
    arguments = parser.parse_args()
    modules = [_known(name) for name in arguments.modules] or list(TESTS)
    rows = [_score(module, arguments.survivors) for module in modules]
    print(ROW.format("module", "mutants", "killed", "survived", "timeouts", "score"), *rows, sep="\n")


def _known(name: str) -> str:
    """Return the key of `TESTS` that is the name, or ends with it."""
    for module in TESTS:
        if f".{module}".endswith(f".{name}"):
            return module
    sys.exit(f"{name}: is not in the table of {__file__}: {' '.join(TESTS)}")


def _score(module: str, again: bool) -> str:
    """Try the mutants of one module, print the survivors and return its row of the table."""
    folder = ROOT / "build" / "mutation" / module
    _prepare(folder, module, again)
    _mutmut(folder, "run", "--max-children", "1", to=sys.stderr.fileno())
    lines = _mutmut(folder, "results", "--all", "true").splitlines()
    statuses = dict(line.strip().split(": ") for line in lines)
    for mutant, status in statuses.items():
        if status not in (*KILLED, "timeout"):
            print(_mutmut(folder, "show", mutant))
    found = Counter(statuses.values())
    total, late, killed = found.total(), found["timeout"], sum(found[status] for status in KILLED)
    score = f"{(killed + late) / total:.1%}" if total else "-"
    return ROW.format(module, total, killed, total - killed - late, late, score)


def _prepare(folder: Path, module: str, again: bool) -> None:
    """Make a folder that looks like the checkout, but that mutmut is configured for one module."""
    source = f"src/reftune/{module.replace('.', '/')}.py"
    if again and (folder / "mutants").exists():
        _forget_survivors(folder / "mutants", source)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        # Python would not look again into a folder on PYTHONPATH that is missing when it starts.
        (folder / "mutants" / "src").mkdir(parents=True)
        for entry in ROOT.iterdir():
            if entry.name[0] != "." and entry.name not in ("build", "runs", "pyproject.toml"):
                (folder / entry.name).symlink_to(entry)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tests = [path for stem in TESTS[module] for path in (ROOT / "tests").rglob(f"{stem}.py")]
    settings["tool"]["mutmut"] |= {
        "only_mutate": [source],
        "pytest_add_cli_args_test_selection": [str(path.relative_to(ROOT)) for path in tests],
        "pytest_add_cli_args": ["-p", Path(__file__).stem],  # the hook below
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")


def _forget_survivors(mutants: Path, source: str) -> None:
    """Leave mutmut only the kills of the last run; which test reaches what may have changed."""
    (mutants / "mutmut-stats.json").unlink(missing_ok=True)
    meta = mutants / f"{source}.meta"
    data = json.loads(meta.read_text(encoding="utf-8"))
    codes = data["exit_code_by_key"]
    data["exit_code_by_key"] = {mutant: code if code == 1 else None for mutant, code in codes.items()}
    meta.write_text(json.dumps(data), encoding="utf-8")


def _mutmut(folder: Path, *arguments: str, to: int = subprocess.PIPE) -> str:
    # What the tests start shall import the mutants too.
    path = f"{folder / 'mutants' / 'src'}{os.pathsep}{Path(__file__).parent}"
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=to, text=True)
    if done.returncode:
        sys.exit(f"mutmut {arguments[0]} failed in {folder}; do the tests pass?\n{done.stdout or ''}")
    return done.stdout or ""


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Run the tests that are fast without mutants first: what they kill costs the slow ones nothing."""
    statistics = Path("mutmut-stats.json")
    if statistics.exists():
        seconds = json.loads(statistics.read_text(encoding="utf-8"))["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


if __name__ == "__main__":
    main()
