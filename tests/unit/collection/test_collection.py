# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to agree between the collection's files."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.virtops.live_backup.plugins.module_utils import _module
from ansible_collections.virtops.live_backup.plugins.module_utils._base.version import VERSION

ROOT = Path(__file__).parents[3]
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py") if path.stem != "__init__")
RULES = ("required_one_of", "mutually_exclusive", "required_together")
PACKAGE = "ansible_collections.virtops.live_backup.plugins"

# What they do is done with files alone.
WITHOUT_LIBVIRT = {"backup_set_copy", "backup_set_extract", "backup_set_consolidate", "backup_set_info", "backup_set_prune"}


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_version_is_galaxys() -> None:
    assert load("galaxy.yml")["version"] == VERSION


def test_every_module_that_asks_libvirt_is_in_the_action_group() -> None:
    group = load("meta/runtime.yml")["action_groups"]["live_backup"]
    assert group == [name for name in MODULES if name not in WITHOUT_LIBVIRT]


@pytest.mark.parametrize("book", sorted(path.name for path in (ROOT / "playbooks").glob("*.yml")))
def test_every_play_names_its_strategy(book: str) -> None:
    """That of the controller's configuration may not know run_once, nor add hosts once for all."""
    assert all("strategy" in play for play in load(f"playbooks/{book}"))


def options_of(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The argument spec that a module gives to Ansible."""
    specs: list[dict[str, Any]] = []

    class Stop(Exception):
        """Ansible is asked for the arguments; more is not wanted."""

    def record(argument_spec: dict[str, Any], **more: Any) -> None:
        rules = {option for kind in RULES for rule in more.pop(kind, []) for option in rule}
        assert more == {"supports_check_mode": True} and rules <= set(argument_spec)
        specs.append(argument_spec)
        raise Stop

    monkeypatch.setattr(_module, "AnsibleModule", record)
    with pytest.raises(Stop):
        importlib.import_module(f"{PACKAGE}.modules.{name}").main()
    return specs[0]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_that_asks_libvirt_has_the_uri_option(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = None if name in WITHOUT_LIBVIRT else {"type": "str", "default": "qemu:///system"}
    assert options_of(name, monkeypatch).get("uri") == uri


@pytest.mark.parametrize("name", MODULES)
def test_every_option_is_documented(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"{PACKAGE}.modules.{name}")
    documentation = yaml.safe_load(module.DOCUMENTATION)
    documented = dict(documentation.get("options", {}))
    for fragment in documentation["extends_documentation_fragment"]:
        file, _dot, part = fragment.removeprefix("virtops.live_backup.").partition(".")
        text = getattr(importlib.import_module(f"{PACKAGE}.doc_fragments.{file}").ModuleDocFragment, part.upper() or "DOCUMENTATION")
        documented.update(yaml.safe_load(text)["options"])
    assert documentation["module"] == name
    described = {
        option: (spec["type"], spec.get("required"), spec.get("default"), spec.get("choices")) for option, spec in documented.items()
    }
    spec = options_of(name, monkeypatch)
    assert {option: (one["type"], one.get("required"), one.get("default"), one.get("choices")) for option, one in spec.items()} == described


@pytest.mark.parametrize("example", MODULES)
def test_the_examples_give_only_options_that_there_are(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(options_of(example, monkeypatch))
    examples = yaml.safe_load(importlib.import_module(f"{PACKAGE}.modules.{example}").EXAMPLES)
    given = [task[f"virtops.live_backup.{example}"] or {} for task in examples if f"virtops.live_backup.{example}" in task]
    assert given and all(set(options) <= known for options in given)


def expressions(path: Path) -> str:
    """What Ansible evaluates in a file of tasks or variables."""
    text = path.read_text(encoding="utf-8")
    return " ".join([*re.findall(r"\{\{.*?\}\}", text, re.DOTALL), *re.findall(r"^ *(?:when:|- __).*", text, re.MULTILINE)])


def test_the_role_reads_its_options_from_one_mapping() -> None:
    """A row of the playbook is another host: a variable of the role that it read itself would be silently the default."""
    spec = load("roles/backup/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    role = ROOT / "roles/backup"
    by_hypervisor = [role / "tasks" / name for name in ("main.yml", "list.yml", "name.yml")]
    by_row = [path for path in sorted((role / "tasks").glob("*.yml")) if path not in by_hypervisor]
    said = " ".join(expressions(path) for path in [*by_row, role / "vars/main.yml"])
    read = set(re.findall(r"\b__backup_options\.(\w+)", said))
    listed = set(re.findall(r"\bbackup_\w+", " ".join(expressions(path) for path in by_hypervisor)))
    # A fact would show the key, so that each row reads it from its hypervisor.
    own = {"id", "encryption_key"}
    assert {name for name in re.findall(r"\bbackup_(\w+)", said) if f"backup_{name}" in spec} <= own
    assert {f"backup_{name}" for name in read | own} | (listed & set(spec)) == set(spec)
