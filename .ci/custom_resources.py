"""Check rendered resources of kinds that Kubernetes does not know against their makers' models."""

import ast
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import files
from pathlib import Path
from typing import Any

import cloudcoil.models.keda.v1alpha1 as keda
import cloudcoil.models.prometheus_operator.v1 as operator
import yaml
from pydantic import BaseModel, ValidationError

Resource = Mapping[str, Any]

MODELS: dict[str, type[BaseModel]] = {
    "PrometheusRule": operator.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
    "ServiceMonitor": operator.ServiceMonitor,
}
SCALARS = {"int": int, "str": str, "bool": bool}


def main(paths: list[str]) -> None:
    """Print what is wrong with the resources of these files and end with 1, or count them."""
    seen: dict[str, int] = {}
    wrong = []
    for path in map(Path, paths):
        for resource in yaml.safe_load_all(path.read_text()):
            kind = resource["kind"]
            if kind in {*MODELS, "InferenceService"}:
                seen[kind] = seen.get(kind, 0) + 1
                wrong += [f"{path.stem}: {kind}: {fault}" for fault in faults(resource)]
    missing = {*MODELS, "InferenceService"} - seen.keys()
    wrong += [f"no overlay has a {kind}: this check looks at nothing" for kind in sorted(missing)]
    if wrong:
        sys.exit("\n".join(wrong))
    print(", ".join(f"{count} {kind}" for kind, count in sorted(seen.items())), "fit")


def faults(resource: Resource) -> Iterator[str]:
    """Yield what its maker's model refuses, or does not know."""
    if resource["kind"] == "InferenceService":
        yield from _predictor_faults(resource["spec"]["predictor"])
        return
    try:
        taken = MODELS[resource["kind"]].model_validate(resource)
    except ValidationError as error:
        yield str(error)
        return
    # These models pass over what they do not know: so it is missing from what they give back.
    back = taken.model_dump(mode="json", by_alias=True, exclude_unset=True)
    yield from _lost(resource, back, "")


def _lost(sent: object, back: object, at: str) -> Iterator[str]:
    match sent, back:
        case dict(), dict():
            for key, value in sent.items():
                yield from _lost(value, back.get(key), f"{at}.{key}")
        case list(), list() if len(sent) == len(back):
            for index, (value, kept) in enumerate(zip(sent, back, strict=True)):
                yield from _lost(value, kept, f"{at}[{index}]")
        case _ if sent != back:
            yield f"{at} is no field, or {sent!r} no value for it"


def _predictor_faults(predictor: Resource) -> Iterator[str]:
    """Yield fields that KServe does not know; a test holds those of a pod to Kubernetes' schema."""
    table = _kserve_tables("v1beta1_predictor_spec.py")
    names = {told: own for own, told in table["attribute_map"].items()}
    for key, value in predictor.items():
        kind = table["openapi_types"].get(names.get(key, ""))
        if kind is None:
            yield f"predictor.{key} is no field"
        elif kind in SCALARS and type(value) is not SCALARS[kind]:
            yield f"predictor.{key} is no {kind}: {value!r}"


def _kserve_tables(name: str) -> dict[str, dict[str, str]]:
    """Return the dictionaries that one of KServe's generated classes tells its fields by."""
    (path,) = (one for one in files("kserve") or () if one.match(f"kserve/models/{name}"))
    return {
        target.id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in {"openapi_types", "attribute_map"}
    }


if __name__ == "__main__":
    main(sys.argv[1:])
