"""Draws values that a schema of the OpenAPI document allows, with names that many requests share, so that they meet."""

import random
import re
from typing import Any

from omni_rl_bench.fuzz.media import digests
from omni_rl_bench.fuzz.operations import Schema

RUNS, ENGINES, SAMPLES = 4, 3, 6
_CANDIDATES = (
    *("digits", "a", "text", "bfloat16", "1/1", "0" * 64, "00c0ffee00c0ffee", "0", "3f1c9a20be77", ""),
    *("logprob_abs_diff_mean", "token_mult_prob_error", "layers.0.norm.weight"),
)
"""The texts that are tried in turn where a string has a pattern."""
DEEP = 6


class Values:
    """Draws from one `random.Random`. `reach` is the highest number of steps and updates."""

    def __init__(self, document: Schema, rng: random.Random, reach: int) -> None:
        self._schemas = document.get("components", {}).get("schemas", {})
        self._rng = rng
        self._reach = reach

    def of(self, schema: Schema, name: str = "", deep: int = 0) -> Any:
        """Return one value. `name` is that of the field or parameter, which decides where requests have to meet."""
        schema = self.resolved(schema)
        if (shared := self._shared(name)) is not None:
            return shared
        rng = self._rng
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        for choice in ("anyOf", "oneOf"):
            if choice in schema:
                return self.of(rng.choice(schema[choice]), name, deep)
        if "allOf" in schema:
            return self.of(schema["allOf"][0], name, deep)
        examples = schema.get("examples") or ([schema["example"]] if "example" in schema else [])
        if examples and rng.random() < 0.6:
            return self._meeting(rng.choice(examples))
        match schema.get("type"):
            case "object":
                return self._object(schema, deep)
            case "array":
                return self._array(schema, deep)
            case "string":
                return self._string(schema)
            case "integer":
                low = int(schema.get("minimum", 0))
                return min(low + rng.choice((0, 0, 1, 2, 5, 100)), int(schema.get("maximum", 2**31 - 1)))
            case "number":
                low = schema.get("minimum", schema.get("exclusiveMinimum", -1.0))
                return min(low + rng.choice((0.25, 0.5, 1.0, 3.5)), schema.get("maximum", 1e9))
            case "boolean":
                return rng.random() < 0.5
            case "null":
                return None
            case _:
                return rng.choice((None, 1, "a", [1], {"a": 1}))

    def resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        return schema

    def _shared(self, name: str) -> Any:
        """Return a value that other requests have too; None where the name has no meaning here."""
        rng = self._rng
        match name:
            case "run":
                return f"run-{rng.randrange(RUNS)}"
            case "attempt":
                return rng.choice((1, 1, 1, 2))
            case "step" | "update" | "of":
                return rng.randrange(max(0, self._reach - 1), self._reach + 2)
            case "rank" | "worker":
                return rng.choice((0, 0, 0, 1))
            case "engine":
                return f"rollout-{rng.randrange(ENGINES)}"
            case "sample":
                return f"p{rng.randrange(SAMPLES)}/0"
            case "incident" | "check":
                return rng.randrange(1, 20)
            case "digest":
                return rng.choice(digests())
            case _:
                return None

    def _meeting(self, example: Any) -> Any:
        """Return an example with shared names in it."""
        if isinstance(example, dict):
            found = {}
            for key, value in example.items():
                shared = self._shared(key) if isinstance(value, (str, int)) else None
                found[key] = self._meeting(value) if shared is None else shared
            return found
        return [self._meeting(one) for one in example] if isinstance(example, list) else example

    def _object(self, schema: Schema, deep: int) -> dict[str, Any]:
        rng, found = self._rng, {}
        required = set(schema.get("required", ()))
        for name, one in schema.get("properties", {}).items():
            if name in required or (deep < DEEP and rng.random() < 0.5):
                found[name] = self.of(one, name, deep + 1)
        values = schema.get("additionalProperties")
        for pattern, one in schema.get("patternProperties", {}).items():
            found[self._string({"pattern": pattern})] = self.of(one, "", deep + 1)
        if isinstance(values, dict) and deep < DEEP:
            names = schema.get("propertyNames", {"type": "string", "pattern": "^[a-z]"})
            for _ in range(rng.randrange(3)):
                found[str(self.of(names, "", deep + 1))] = self.of(values, "", deep + 1)
        return found

    def _array(self, schema: Schema, deep: int) -> list[Any]:
        if "prefixItems" in schema:
            return [self.of(one, "", deep + 1) for one in schema["prefixItems"]]
        count = schema.get("minItems", 0) + (0 if deep >= DEEP else self._rng.randrange(3))
        return [self.of(schema.get("items", {}), "", deep + 1) for _ in range(count)]

    def _string(self, schema: Schema) -> str:
        rng = self._rng
        if "pattern" not in schema:
            return rng.choice(("a", "digits", "x" * 40, "é日本🦜", " "))[: schema.get("maxLength", 64)]
        fitting = [one for one in _CANDIDATES if re.search(schema["pattern"], one)]
        return rng.choice(fitting) if fitting else "a"
