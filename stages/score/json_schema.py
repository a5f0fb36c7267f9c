"""JSON that fits a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from graftline.stages.errors import InvalidField
from graftline.stages.rows import canonical
from graftline.stages.score.check import Check, Checked
from graftline.stages.specification import Paper

FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL)
Json = str | int | float | bool | None | tuple[Any, ...] | Mapping[str, Any]


class JsonSchema(Check):
    """The response is JSON (alone, or in its one fenced block) that fits a schema and, if asked, the reference.

    Args:
        json_schema: a JSON Schema, draft 2020-12. References to other documents are not followed.
        equal: whether it must also equal the reference: whatever the order of keys, 1 and 1.0 being one number and 1
            and true two values. Without it the reference is not looked at.

    Raises:
        InvalidField: the schema is none.

    The property its test checks: what does not fit is wrong, with the path to it in the reason.
    """

    method = "score.verify.json_schema"
    papers = (Paper("Boosting Tool Use of Large Language Models via Iterative Reinforced Fine-Tuning"),)

    json_schema: Mapping[str, Json] = {}
    equal: bool = False

    def check(self) -> None:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError

        try:
            Draft202012Validator.check_schema(self._schema())
        except SchemaError as error:
            raise InvalidField(
                f"is no JSON Schema: {error.message}", where="JsonSchema.json_schema", do=f"look at {error.json_path}"
            ) from error

    @property
    def needs_reference(self) -> bool:
        return self.equal

    def checked(self, response: str, reference: str | None) -> Checked:
        import referencing
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        try:
            value = parsed(response)
        except ValueError as error:
            return Checked(0, f"is no JSON: {error}")
        try:
            # With a registry of its own it fetches nothing.
            validator = Draft202012Validator(self._schema(), registry=referencing.Registry())
            fault = best_match(validator.iter_errors(value))
        except Unresolvable as error:
            raise InvalidField(
                f"refers to what is not in it: {error}", where="JsonSchema.json_schema", do="put it into $defs"
            ) from error
        except RecursionError:
            return Checked(None, "is nested too deeply to look at")
        if fault is not None:
            return Checked(0, f"{fault.json_path}: {fault.message[:200]}")
        if not self.equal:
            return Checked(1)
        try:
            wanted = parsed(reference or "")
        except ValueError:
            return Checked(None, "the reference is no JSON")
        different = difference(value, wanted)
        return Checked(int(different is None), f"{different}: is not the reference's" if different else "")

    def _schema(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(canonical(self.json_schema))
        return found


def parsed(text: str) -> Any:
    """The JSON value a text is, or its one fenced block is.

    Raises:
        ValueError: neither is JSON; NaN and infinities are none, and no object may have a key twice.
    """
    blocks = FENCED.findall(text)
    body = blocks[0] if len(blocks) == 1 else text

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("an object has a key twice")
        return found

    try:
        return json.loads(body.strip(), parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def difference(one: Any, other: Any, path: str = "$") -> str | None:
    """The path to the first value in which two JSON values differ; None where they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if key not in one or key not in other:
                return f"{path}.{key}"
            if found := difference(one[key], other[key], f"{path}.{key}"):
                return found
        return None
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return path
        pairs = enumerate(zip(one, other, strict=True))
        return next((found for index, pair in pairs if (found := difference(*pair, f"{path}[{index}]"))), None)
    return None if isinstance(one, bool) == isinstance(other, bool) and one == other else path
