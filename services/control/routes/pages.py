"""The dashboard: one page at /, its files under /static, and the chart library out of its Python package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

router = APIRouter(include_in_schema=False)
DIRECTORY = Path(__file__).parent.parent / "dashboard"
_REVALIDATE = {"Cache-Control": "no-cache"}


class DashboardFiles(StaticFiles):
    """The dashboard's own files, asked for again whenever the page is loaded."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, with the header that makes the browser ask whether it changed."""
        response = await super().get_response(path, scope)
        response.headers.update(_REVALIDATE)
        return response


@router.get("/")
async def dashboard() -> FileResponse:
    """The page."""
    return FileResponse(DIRECTORY / "index.html", headers=_REVALIDATE)


@router.get("/static/plotly.js")
async def plotly() -> FileResponse:
    """The chart library, as the plotly package ships it."""
    script = Path(str(files("plotly") / "package_data" / "plotly.min.js"))
    return FileResponse(script, media_type="text/javascript", headers={"Cache-Control": "max-age=3600"})
