"""YAML files that users write or that lie about: read up to a limit of bytes, nesting and references."""

import re
from pathlib import Path
from typing import Any

import yaml

from shared.files import read_limited

MAX_FILE_BYTES = 64 * 1024
MAX_DEPTH = 20  # mappings and lists inside each other


class YamlFileError(ValueError):
    """The file is no YAML mapping that we accept; the text is the reason, in one line."""


def read_mapping(path: Path) -> dict[Any, Any]:
    """The one mapping in a YAML file, as plain Python values.

    Raises OSError when the file cannot be read or has more than 64 KiB, YamlFileError when it is not YAML or no
    mapping, repeats a key, is nested deeper than 20 levels, or uses aliases, a few lines of which stand for gigabytes.
    """
    content = read_limited(path, MAX_FILE_BYTES)
    try:
        loader = _BoundedLoader(content)
        try:
            found = loader.get_single_data()
        finally:
            loader.dispose()
    except YamlFileError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as err:
        raise YamlFileError(f"not YAML ({' '.join(str(err).split())[:200]})") from err
    if not isinstance(found, dict):
        raise YamlFileError("not a YAML mapping")
    return found


class _BoundedLoader(yaml.SafeLoader):
    """Whole numbers are decimal, as in YAML 1.2: in YAML 1.1 `0012` is 10 and `1:30` is 90."""

    _depth = 0
    yaml_implicit_resolvers = {  # noqa: RUF012 - as its base class has it
        sign: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:int"]
        for sign, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: yaml.AliasEvent = self.peek_event()  # type: ignore[no-untyped-call]
            raise YamlFileError(f"the alias *{(alias.anchor or '')[:40]}: write the value out instead")
        if self._depth >= MAX_DEPTH:
            raise YamlFileError(f"nested deeper than {MAX_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise YamlFileError(f"the key {key.value[:40]!r} is given twice")
                seen.add((key.tag, key.value))
        return node


_DECIMAL = re.compile(r"^[-+]?[0-9]+$", re.ASCII)
_BoundedLoader.add_implicit_resolver("tag:yaml.org,2002:int", _DECIMAL, list("-+0123456789"))
_BoundedLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
