"""Checks deploy/kuberay against published schemas: `python tools/manifests.py --crd FILE... [--core DIR]`.

FILE: resource definitions, as KubeRay (`ray-operator/config/crd/bases`) and the Prometheus operator
(`example/prometheus-operator-crd`) publish them. DIR: Kubernetes' own schemas, one file a kind, as the package
`kubernetes-validate` has them (`kubernetes-json-schema/v1.34.0-local-strict`). The schemas are not in this repository.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft4Validator  # type: ignore[import-untyped]
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

MANIFESTS = Path(__file__).parents[1] / "deploy" / "kuberay"
Schemas = dict[tuple[str, str], dict[str, Any]]
"""Schemas by `apiVersion` and `kind`."""


def main() -> int:
    """Return 0 if all manifests are valid; 1 if one is not, or has no schema."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crd", type=Path, nargs="+", required=True)
    parser.add_argument("--core", type=Path)
    arguments = parser.parse_args()
    schemas: Schemas = {}
    for path in arguments.crd:
        schemas |= resource_definitions(path)
    bad = 0
    for name, manifest in manifests(MANIFESTS):
        schema = schemas.get((manifest["apiVersion"], manifest["kind"])) or core_schema(arguments.core, manifest)
        problems = ["no schema of it was given"]
        if schema is not None:
            problems = list(problems_of(manifest, schema, arguments.core))
        bad += bool(problems)
        sys.stdout.write(f"{name}: {manifest['kind']} {'; '.join(problems) or 'is valid'}\n")
    return int(bad > 0)


def manifests(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every document but kustomize's own, which no cluster sees."""
    for path in sorted(directory.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document and document["kind"] != "Kustomization":
                yield path.name, document


def resource_definitions(path: Path) -> Schemas:
    """Return the schemas of every version that a file's definitions serve."""
    return {
        (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): closed(
            version["schema"]["openAPIV3Schema"], top=True
        )
        for crd in yaml.safe_load_all(path.read_text())
        if crd
        for version in crd["spec"]["versions"]
        if version["served"]
    }


def closed(schema: Any, *, top: bool = False) -> Any:
    """Return a definition's schema as JSON Schema, with unnamed fields refused: a cluster drops them in silence.

    `metadata` is Kubernetes' own and left open, as definitions leave it.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        found["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not top and not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    return found


def core_schema(directory: Path | None, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Return Kubernetes' own schema of a kind, which is in deployment-apps-v1.json, service-v1.json and so on."""
    if directory is None:
        return None
    *group, version = manifest["apiVersion"].split("/")
    parts = [manifest["kind"], *(part.split(".")[0] for part in group), version]
    path = directory / f"{'-'.join(parts).lower()}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def problems_of(manifest: dict[str, Any], schema: dict[str, Any], core: Path | None) -> Iterator[str]:
    def beside(name: str) -> Resource[Any]:
        assert core is not None, "definitions refer to nothing outside"
        return DRAFT4.create_resource(json.loads((core / Path(name).name).read_text()))

    registry: Registry[Any] = Registry(retrieve=beside)  # type: ignore[call-arg]
    for error in Draft4Validator(schema, registry=registry).iter_errors(manifest):
        where = ".".join(str(part) for part in error.absolute_path)
        yield f"{where}: {error.message[:200]}"


if __name__ == "__main__":
    sys.exit(main())
