"""docs/cli.md names every command and every option, and nothing that does not exist; what it shows is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from coppice.cli.main import app
from coppice.cli.settings import CompileSettings, compile_settings
from coppice.core.errors import CoppiceError

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SECTIONS = {part.split("\n", 1)[0].removeprefix("coppice "): part for part in TEXT.split("\n## ")[1:]}
COMMON = {"--help", "-h", "--version", "--config", "--json", "--debug", "--input"}


def options(command: str) -> set[str]:
    return {o for p in COMMANDS[command].params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")} - {
        "--help"
    }


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert set(COMMANDS) == set(SECTIONS) - {"What holds for every command"}
    for command in COMMANDS:
        assert f"[`{command}`](#coppice-{command})" in TEXT


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented_and_exists(command: str) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", SECTIONS[command]))
    assert options(command) - named == set()
    assert named - options(command) - COMMON == set()
    assert {"--json", "--debug"} <= options(command)


def test_every_command_and_option_has_help() -> None:
    for command in COMMANDS.values():
        assert command.help
        assert all(parameter.help for parameter in command.params if parameter.name != "help")


def test_the_exit_codes_are_those_of_the_errors() -> None:
    kinds: list[type[CoppiceError]] = [CoppiceError, *CoppiceError.__subclasses__()]
    codes = {0, 130} | {kind.exit_code for kind in kinds}
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    assert documented == codes


def test_the_settings_file_shown_is_valid_and_names_every_key(tmp_path: Path) -> None:
    shown = TEXT.split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "settings.yaml"
    path.write_text(shown)
    settings = compile_settings(path, {})
    assert set(yaml.safe_load(shown)) == set(CompileSettings.model_fields)
    assert settings.bounds == {"blocks.2.conv1": 16, "blocks.0.conv1": (0.25, 0.75)}
    path.write_text(settings.to_yaml())
    assert compile_settings(path, {}) == settings


def test_the_examples_named_in_documents_exist() -> None:
    for document in (ROOT / "docs" / "cli.md", ROOT / "examples" / "README.md"):
        for file, function in re.findall(r"(examples/\w+\.py):(\w+)", document.read_text()):
            assert f"\ndef {function}(" in (ROOT / file).read_text()
    listed = set(re.findall(r"^\| `(\w+\.py)`", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "examples").glob("*.py")}
