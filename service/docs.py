"""OpenAPI, and a page for it that works without a network: its assets come from a package."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from service.bodies import FORM, IMAGES, JSON
from service.problems import MEDIA_TYPE, PROBLEMS, ProblemBody
from service.schemas import ActivateRequest, ClassifyRequest, ProbeRequest

_MODELS: tuple[type[BaseModel], ...] = (ClassifyRequest, ProbeRequest, ActivateRequest, ProblemBody)
_REF = "#/components/schemas/{model}"

# What may go wrong with any JSON body, and with a request about pictures.
OF_BODIES = (
    *("malformed-json", "host-refused", "origin-refused", "body-too-slow", "body-too-large"),
    *("unsupported-media-type", "validation", "prompt-set-invalid", "starting"),
    *("unknown-prompt-set", "unknown-version"),
)
OF_PICTURES = (
    *OF_BODIES,
    *("malformed-multipart", "too-many-labels", "image-undecodable", "image-format-refused"),
    *("image-too-many-pixels", "image-too-costly", "url-disabled", "queue-full", "deadline-exceeded"),
)


def body_of(model: type[BaseModel], *, forms: bool = True) -> dict[str, Any]:
    """The `requestBody` of a route that parses its own body."""
    reference = {"$ref": _REF.format(model=model.__name__)}
    content: dict[str, Any] = {JSON: {"schema": reference}}
    if forms:
        content[FORM] = {
            "schema": {
                "type": "object",
                "properties": _form(model),
                "required": ["image", "labels"],
                "additionalProperties": False,
            }
        }
        content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGES}
    return {"requestBody": {"required": True, "content": content}}


def query_of(model: type[BaseModel], *names: str) -> list[dict[str, Any]]:
    """Query parameters for a body that is nothing but the image."""
    properties = model.model_json_schema(ref_template=_REF)["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": _plain(properties[name]),
            "description": "for a raw image body",
        }
        for name in names
    ]


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems, in the order of their table."""
    by_status: dict[int | str, list[str]] = {}
    for code in sorted(codes, key=list(PROBLEMS).index):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="ProblemBody")}}}
    return {
        status: {"description": ", ".join(named), "content": content} for status, named in by_status.items()
    }


def install_docs(app: FastAPI) -> None:
    """`/docs`, and an `/openapi.json` that has the models which the routes parse themselves."""
    app.mount(
        "/docs/assets",
        StaticFiles(directory=Path(str(files("fastapi_offline"))) / "static"),
        name="docs-assets",
    )

    async def page(request: Request) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon.png",
        )

    app.add_route("/docs", page, include_in_schema=False)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            _, definitions = models_json_schema(
                [(model, "validation") for model in _MODELS], ref_template=_REF
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions.get("$defs", {}))
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi


def _form(model: type[BaseModel]) -> dict[str, Any]:
    """Form fields: the picture as a file, everything else as text or repeated text."""
    binary: dict[str, Any] = {"type": "string", "format": "binary"}
    texts = {
        name: _plain(schema)
        for name, schema in model.model_json_schema(ref_template=_REF)["properties"].items()
    }
    return {**texts, "image": binary} | (
        {"images": {"type": "array", "items": binary}} if "images" in texts else {}
    )


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field in a form or a query, where structures are text."""
    if schema.get("type") in ("array", "integer", "number", "string"):
        return schema
    simple = [
        option for option in schema.get("anyOf", []) if option.get("type") in ("integer", "number", "string")
    ]
    return simple[0] if simple else {"type": "string"}
