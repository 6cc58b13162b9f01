"""The reference pages, made from the code: every key of a plan, every command, every environment variable.

``python -m tests.project.reference --write`` writes the pages (``make docs-reference``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
import yaml
from pydantic import SecretStr

from animl_pipeline.cli.main import app
from animl_pipeline.config import Plan
from animl_pipeline.config.settings import DEPLOYMENTS, Settings
from tests.support.paths import ROOT

MADE_BY = "This page is made from the code by `make docs-reference`; a test keeps it current."
EXAMPLE_PLANS = ("sample", "santa-cruz-island", "channel-islands-lila")
LIMITS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
OTHER_VARIABLES = {
    "PREFECT_API_URL": "the Prefect server that runs are reported to, such as http://127.0.0.1:4200/api; without it, a command starts one of its own",
    "PREFECT_API_AUTH_STRING": "user:password for that server",
    "PREFECT_SERVER_API_AUTH_STRING": "user:password that `animl-pipeline server` and `up` ask for",
    "PREFECT_SERVER_UI_API_URL": "the address at which browsers see the server, if it is another one",
    "PREFECT_API_SSL_CERT_FILE": "a file with the certificate of the CA that signed the server's",
    "PREFECT_HOME": "folder of Prefect's profiles and database; ~/.prefect",
    "AWS_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, …": "boto3's own variables: which account and region stores and releases go to",
    "AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL_SAGEMAKER, …": "boto3's own variables: other addresses, such as those of `animl-pipeline sagemaker-local`",
    "COLUMNS": "the width of tables that do not go to a terminal",
    "HTTPS_PROXY, REQUESTS_CA_BUNDLE, …": "the usual variables for a proxy and its certificates",
}


def plan_page() -> str:
    """docs/plan-reference.md: every key, its type, default and an example from the shipped plans."""
    schema = Plan.model_json_schema(by_alias=True)
    examples = [yaml.safe_load((DEPLOYMENTS / "plans" / f"{name}.yaml").read_text(encoding="utf-8")) for name in EXAMPLE_PLANS]
    intro = (
        f"# Every key of a plan\n\n{MADE_BY} `deployments/plans/sample.yaml` shows the keys in one file; `animl-pipeline plan check PLAN` says "
        "which value is wrong. A key without a default must be given. The examples come from the shipped plans.\n"
    )
    return "\n".join([intro, *_model("", schema, schema["$defs"], examples)])


def _model(path: str, model: dict[str, Any], models: dict[str, Any], examples: list[Any]) -> Iterator[str]:
    """The section of one model, then those of the models in it."""
    inner = []
    if path:
        yield f"## {path}\n"
        yield f"{_one_line(model.get('description', ''))}\n"
    yield "| key | type | default | what it means | example |\n|---|---|---|---|---|"
    for key, found in model["properties"].items():
        name, kind, of = _type(found, models)
        values = [example[key] for example in examples if isinstance(example, dict) and example.get(key) is not None]
        default = "required" if key in model.get("required", []) else "see below" if of and "null" not in name else _shown(found.get("default"))
        example = "" if of or not values else _shown(values[0])
        link = f" [see below](#{_anchor(f'{path}.{key}'.strip('.'))})" if of else ""
        meaning = _one_line(found.get("description") or (of or {}).get("description", ""))
        yield f"| `{key}` | {_cell(name)} | {_cell(default)} | {_cell(meaning)}{link} | {_cell(example)} |"
        if of:
            inner.append((f"{path}.{key}".strip("."), of, [_first(value) if kind else value for value in values]))
    yield ""
    for where, of, values in inner:
        yield from _model(where, of, models, values)


def _type(found: dict[str, Any], models: dict[str, Any]) -> tuple[str, str, dict[str, Any] | None]:
    """A key's type in words; "list" or "map" if it holds several models; the model."""
    if "$ref" in found:
        model = models[found["$ref"].rpartition("/")[2]]
        return ("section", "", model) if "properties" in model else _type(model, models)
    if "enum" in found or "const" in found:
        return ", ".join(f"`{v}`" for v in found.get("enum", [found.get("const")])), "", None
    if options := found.get("anyOf") or found.get("oneOf"):
        parts = [_type(option, models) for option in options]
        several = next((part for part in parts if part[2]), ("", "", None))
        return " or ".join(dict.fromkeys(part[0] for part in parts)), several[1], several[2]
    if found.get("type") == "array":
        items = found.get("items") or next(iter(found.get("prefixItems", [])), {})
        name, _, model = _type(items, models)
        return f"list of {name}", "list" if model else "", model
    if found.get("type") == "object":
        name, _, model = _type(found.get("additionalProperties") or {}, models)
        return f"map of names to {name}", "map" if model else "", model
    limits = ", ".join(text.format(f"{found[limit]:,}") for limit, text in LIMITS.items() if limit in found)
    words = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}
    return f"{words.get(str(found.get('type')), 'any')}{f' {limits}' if limits else ''}", "", None


def _first(value: Any) -> Any:
    """The first model of a list or map."""
    values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return next((v for v in values if isinstance(v, dict)), None)


def commands_page() -> str:
    """docs/commands.md: every command with its arguments and options."""
    return "\n".join([f"# Every command\n\n{MADE_BY}\n", *_command("animl-pipeline", typer.main.get_command(app))])


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{_paragraphs(command.help or command.short_help or '')}\n"
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = " ".join((p.metavar or p.name.upper()) for p in shown if p.param_type_name == "argument")
    if not hasattr(command, "commands"):
        yield f"```text\n{name} [OPTIONS] {arguments}".rstrip() + "\n```\n"
    if shown:
        yield "| argument or option | default | what it means |\n|---|---|---|"
    for p in shown:
        option = p.param_type_name == "option"
        said = ", ".join(f"`{o}`" for o in p.opts) if option else f"`{(p.metavar or p.name.upper())}`"
        default = "" if p.default in (None, False, "", []) or callable(p.default) else str(p.default)
        yield f"| {said} | {_cell('required' if p.required else default)} | {_cell(_one_line(p.help or ''))} |"
    yield ""
    for inner in getattr(command, "commands", {}):
        yield from _command(f"{name} {inner}", command.get_command(None, inner))


def environment_page() -> str:
    """docs/environment.md: every environment variable."""
    lines = [f"# Every environment variable\n\n{MADE_BY} Passwords and tokens are never shown in logs or reports.\n", "## Of this software\n"]
    lines.append("| variable | default | what it means |\n|---|---|---|")
    for name, field in Settings.model_fields.items():
        value = "" if isinstance(field.default, SecretStr) else str(field.default).replace(str(DEPLOYMENTS), "deployments")
        lines.append(f"| `ANIML_{name.upper()}` | {_cell(value)} | {_cell(field.description or '')} |")
    lines += ["\n## Of others\n", "| variable | what it means |\n|---|---|"]
    lines += [f"| {', '.join(f'`{v}`' if v != '…' else v for v in name.split(', '))} | {meaning} |" for name, meaning in OTHER_VARIABLES.items()]
    return "\n".join([*lines, "\nThe endpoint's own variables are on its [page](endpoint.md).\n"])


def _shown(value: Any) -> str:
    """A value as a plan holds it, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    return f"`{text if len(text) <= 100 else f'{text[:97]}…'}`" if value != "" else '`""`'


def _anchor(heading: str) -> str:
    return heading.lower().replace(".", "")


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def _paragraphs(text: str) -> str:
    return "\n\n".join(_one_line(part) for part in text.split("\n\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;") if "`" not in text else text.replace("|", "\\|")


PAGES: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "plan-reference.md": plan_page,
    ROOT / "docs" / "commands.md": commands_page,
    ROOT / "docs" / "environment.md": environment_page,
}

if __name__ == "__main__":
    for file, make in PAGES.items():
        if sys.argv[1:] == ["--write"]:
            file.write_text(make(), encoding="utf-8")
        else:
            sys.stdout.write(make())
