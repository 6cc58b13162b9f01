"""Read YAML that a stranger may have written: bounded in size, depth and repetition, without surprises in its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from animl_pipeline.core.errors import PlanError

MAX_BYTES = 256 * 1024
"""A plan with two thousand classes has less."""
MAX_DEPTH = 50
MAX_VALUES = 50_000
"""Keys and values, where those behind an alias or merge (``*name``, ``<<``) count each time they are used."""
MAX_DIGITS = 40
"""Characters of a number."""


def parse_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        PlanError: ``no_plan_file``, ``not_text``, ``too_large`` (in bytes, depth, or values after aliases), or ``not_yaml``.
    """
    text = _read_text(path)
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {}, path)
        return loader.construct_document(node)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(e, "problem", None) or getattr(e, "reason", None) or "it does not parse"
        raise PlanError(f"{path} is not YAML{line}: {reason}", code="not_yaml") from e
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as e:  # an impossible date, a value not of its !!tag
        raise PlanError(f"{path} is not YAML that a plan can be read from: {e}", code="not_yaml") from e


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise PlanError(
            f"expected a plan at {path}, found none ({e.strerror}); give the path of a YAML file, such as deployments/plans/sample.yaml",
            code="no_plan_file",
        ) from e
    if len(data) > MAX_BYTES:
        raise PlanError(f"expected a plan of at most {MAX_BYTES:,} bytes at {path}, found more; is it a plan?", code="too_large")
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise PlanError(f"{path} is not a text file (byte {e.start} is not UTF-8); give the path of a YAML file", code="not_text") from e


def _count_values(node: yaml.Node, known: dict[int, int], path: Path) -> int:
    """How many values a node holds once its aliases are replaced. Each node is visited once.

    Raises:
        PlanError: ``too_large``, or ``not_yaml`` for an alias to something that holds it.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise PlanError(f"{path} is not YAML that a plan can be read from: an alias stands for something that holds it", code="not_yaml")
        return known[id(node)]
    known[id(node)] = 0  # not known yet
    inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    count = 1 + (sum(_count_values(part, known, path) for part in inner) if isinstance(node, yaml.CollectionNode) else 0)
    if count > MAX_VALUES:
        raise PlanError(f"{path}: expected at most {MAX_VALUES:,} values, aliases replaced, found more; write it without aliases", code="too_large")
    known[id(node)] = count
    return count


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses deep nesting, huge numbers, and a key that is given twice: the second value would silently win.

    A number with colons is text, as in YAML 1.2; YAML 1.1 reads 1:30 as 90.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, f"expected keys and values, found {node.id}", node.start_mark)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep=deep))

    def construct_number(self, node: Any) -> Any:
        """An int or a float; text if it has colons."""
        text = self.construct_scalar(node)
        if len(text) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, f"a number with {len(text):,} characters", node.start_mark)
        if ":" in text:
            return text
        return self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _StrictLoader.construct_number)
