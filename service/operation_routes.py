"""What is served, and whether it is well."""

import asyncio
import logging

from fastapi import APIRouter, Request, Response

from service import schemas, views
from service.errors import Unavailable, UnknownBundle
from service.openapi import documented
from service.parts import find_bundle, parts_of
from service.wire import reply
from training.contract.errors import BundleError
from training.contract.spec import MANIFEST

_log = logging.getLogger(__name__)
bundles = APIRouter(prefix="/v1/bundles", tags=["bundles"], default_response_class=Response)
operation = APIRouter(tags=["operation"], default_response_class=Response)


@bundles.get("", openapi_extra=documented(schemas.BundleList))
async def list_bundles(request: Request) -> Response:
    """The bundles that are served."""
    served = parts_of(request).bundles
    return reply(schemas.BundleList([schemas.BundleSummary(name, found.digest, found.spec.env_id) for name, found in served.items()]))


@bundles.get("/{name}", openapi_extra=documented(dict))
async def read_bundle(request: Request, name: str) -> Response:
    """A bundle's manifest, without golden vectors."""
    return reply(views.bundle_view(find_bundle(parts_of(request), name)))


@bundles.get("/{name}/{file}", responses={200: {"content": {"application/octet-stream": {}}}})
async def read_bundle_file(request: Request, name: str, file: str) -> Response:
    """One file of a bundle; its ETag is its SHA-256."""
    bundle = find_bundle(parts_of(request), name).bundle
    entry = bundle.manifest.files.get(file)
    if file == MANIFEST:
        return reply(bundle.manifest.model_dump(mode="json"))
    if entry is None:
        raise UnknownBundle(
            f"bundle {name} has no file {file}"[:200], expected=sorted(bundle.manifest.files), action="Name one of these files."
        )
    etag = f'"{entry.sha256}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"etag": etag})
    try:
        data = await asyncio.to_thread(bundle.read, file)
    except (BundleError, OSError) as error:
        _log.error("a bundle changed on disk since it was loaded: %s", error)
        raise Unavailable(
            f"the file {file} of bundle {name} changed on disk since the service loaded it",
            expected=f"SHA-256 {entry.sha256}",
            action="Restart the service to serve what is there now, or put the old bundle back.",
        ) from error
    return Response(data, media_type="application/octet-stream", headers={"etag": etag})


@operation.head("/livez", include_in_schema=False)
@operation.get("/livez")
async def livez() -> Response:
    """The process runs."""
    return reply({"status": "ok"})


@operation.head("/readyz", include_in_schema=False)
@operation.get("/readyz")
async def readyz(request: Request) -> Response:
    """Redis takes writes and the bundles are loaded: requests can be served."""
    parts_of(request).store.check_writable()
    return reply({"status": "ok"})  # and no more: anybody may ask


@operation.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(parts_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
