"""The review page as an application factory: server-rendered pages, and a small JSON interface for what moves."""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import Annotated, Any
from urllib.parse import urlencode

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from labeler.review.access import MAX_IMAGES, BodyLimit, TokenCheck
from labeler.review.corrections import ConflictError, Corrections, version_of
from labeler.review.pictures import Pictures
from labeler.review.ranked import FeatureMap, RankedTarget, neighbours
from labeler.review.sampling import MARGIN, estimate
from labeler.review.tables import FACETS, SORTS, Asked, LabelTables, UnknownImageError, canned_queries
from labeler.service.callers import CallerCheck
from shared.errors import DgreidError, UsageError
from shared.geometry import Box
from shared.images import UnreadableImageError
from shared.schemas import LabelStatus

log = logging.getLogger(__name__)

PART_COLOURS = ("#f5b700", "#25b4f5", "#f25fb4", "#9b8cff", "#5ad1a5", "#ff8552")  # read on light and dark clothes
MAX_TILES = 240  # per request
PER_PAGE = 40  # of the pages without a script
STRIP = 20  # gallery images of a query
NO_CHANGE = {"cache-control": "private, max-age=86400, immutable"}  # an image_id names its bytes
ImageId = Annotated[str, Field(min_length=1, max_length=64)]


class Decision(BaseModel):
    """What a reviewer says of one image. parts: box in pixels of the original image; None: the part is absent."""

    model_config = ConfigDict(extra="forbid")

    version: str | None = None
    parts: dict[str, tuple[float, float, float, float] | None] = {}
    accept: bool = False


class ManyImages(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image_ids: Annotated[list[ImageId], Field(max_length=MAX_IMAGES)]
    absent: str | None = None  # a part; by default the images are accepted


def create_app(
    tables: LabelTables,
    pictures: Pictures,
    *,
    reviewer: str,
    token: str,
    port: int,
    targets: Sequence[RankedTarget] = (),
    feature_maps: Callable[[], Sequence[FeatureMap]] | None = None,
) -> FastAPI:
    """Args:
    reviewer: whose name corrections carry.
    token: what a browser must show. port: on the loopback interface.
    targets: of trained models, for the page of their failures.
    feature_maps: makes the maps of features on first use.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    corrections = Corrections(tables, reviewer)
    canned = canned_queries()
    environment = Environment(
        loader=PackageLoader("labeler.review.app"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    maps: list[FeatureMap] = []
    making_maps = Lock()

    def page(name: str, request: Request, status: int = 200, **values: Any) -> HTMLResponse:
        html = environment.get_template(name).render(
            title="+".join(tables.datasets),
            run=tables.label_run,
            runs=tables.runs,
            parts=tables.parts,
            colours=dict(zip(tables.parts, PART_COLOURS * 9, strict=False)),
            reviewer=reviewer,
            models=bool(targets),
            maps=feature_maps is not None,
            here=request.url.path,
            link=_link,
            **values,
        )
        return HTMLResponse(html, status_code=status, headers={"cache-control": "no-store"})

    @app.exception_handler(DgreidError)
    async def _(request: Request, err: DgreidError) -> Response:
        status = {UnknownImageError: 404, UnreadableImageError: 404, ConflictError: 409}.get(type(err))
        status = status or (422 if isinstance(err, UsageError) else 503)
        if request.url.path.startswith("/api/"):
            return JSONResponse({"what": err.what, "fix": err.fix}, status_code=status)
        return page("error.html", request, status, what=err.what, fix=err.fix)

    @app.exception_handler(HTTPException)
    async def _(request: Request, err: HTTPException) -> Response:
        return page("error.html", request, err.status_code, what=str(err.detail), fix="go back to the grid")

    @app.exception_handler(Exception)
    async def _(request: Request, err: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=err)
        what, fix = "the page failed with an internal error", "see the terminal it was started in"
        if request.url.path.startswith("/api/"):
            return JSONResponse({"what": what, "fix": fix}, status_code=500)
        return page("error.html", request, 500, what=what, fix=fix)

    # ---- the grid

    @app.get("/")
    def grid(request: Request) -> Response:
        tables.refresh()
        asked, problem = _asked(request), ""
        try:
            _, found = tables.find(asked, anew=True)
        except UsageError as err:
            problem, asked = f"{err.what} – {err.fix}", Asked()
            _, found = tables.find(asked, anew=True)
        return page(
            "grid.html",
            request,
            asked=asked,
            problem=problem,
            typed=request.query_params.get("q", ""),
            canned=canned,
            sorts=SORTS,
            facets=tables.facets(asked),
            facet_names=tuple(FACETS),
            state=_state(asked),
            data={
                "total": len(found),
                "state": _state(asked),
                "colours": dict(zip(tables.parts, PART_COLOURS * 9, strict=False)),
                "first": tables.tiles(found[:60]),
            },
            total=len(found),
        )

    @app.get("/api/tiles")
    def tiles(
        request: Request,
        offset: Annotated[int, Query(ge=0)] = 0,
        count: Annotated[int, Query(ge=1, le=MAX_TILES)] = MAX_TILES,
    ) -> dict[str, Any]:
        _, found = tables.find(_asked(request))
        return {"total": len(found), "tiles": tables.tiles(found[offset : offset + count])}

    @app.get("/api/ids")
    def ids(request: Request) -> list[str]:
        return tables.find(_asked(request))[1]

    @app.post("/api/pick")
    def pick(given: ManyImages) -> dict[str, str]:
        return {"picked": tables.pick(given.image_ids)}

    # ---- one image

    @app.get("/image/{image_id}")
    def image(request: Request, image_id: str) -> Response:
        row = tables.row(image_id)
        asked = _asked(request)
        return page(
            "image.html",
            request,
            row=row,
            state=_state(asked),
            data={
                "id": image_id,
                "state": _state(asked),
                "parts": list(tables.parts),
                "colours": dict(zip(tables.parts, PART_COLOURS * 9, strict=False)),
                "editable": tables.label_run is not None,
            },
        )

    def shown(image_id: str, asked: Asked) -> dict[str, Any]:
        row, rows = tables.row(image_id), tables.label_rows(image_id)
        _, order = tables.find(asked)
        at = order.index(image_id) if image_id in order else None
        return {
            "id": image_id,
            "dataset": row.dataset,
            "path": row.path,
            "width": row.width,
            "height": row.height,
            "readable": row.width > 0,
            "reason": row.reason,
            "identity": row.identity_name or row.identity,
            "camera": row.camera_name or row.camera,
            "split": row.split,
            "version": version_of(rows),
            "run": tables.label_run,
            "parts": {
                part: {
                    "status": one.status,
                    "box": [one.x_min, one.y_min, one.x_max, one.y_max] if one.x_min is not None else None,
                    "flags": one.flags,
                    "score": one.score,
                    "agreement": one.agreement,
                    "attempts": one.attempts,
                    "engine": one.engine,
                    "model": one.model,
                    "raw_text": one.raw_text,
                    "raw_box": one.raw_box,
                    "space": one.space,
                    "at": one.created_at.strftime("%Y-%m-%d %H:%M:%S"),
                }
                for part, one in rows.items()
            },
            "runs": tables.other_runs(image_id),
            "history": [list(entry) for entry in tables.history(image_id)],
            "same": tables.same_identity(image_id),
            "undo": corrections.undoable(image_id),
            "at": at,
            "total": len(order),
            "previous": order[at - 1] if at else None,
            "next": next(iter(order[0 if at is None else at + 1 :]), None),
        }

    @app.get("/api/images/{image_id}")
    def labels(request: Request, image_id: str) -> dict[str, Any]:
        tables.refresh()
        return shown(image_id, _asked(request))

    @app.put("/api/images/{image_id}")
    def decide(request: Request, image_id: str, decision: Decision) -> dict[str, Any]:
        boxes = {part: Box(*box) if box else None for part, box in decision.parts.items()}
        asked = _asked(request)
        order = tables.find(asked)  # before the correction changes which images the question finds
        written = corrections.decide(image_id, boxes, accept=decision.accept, version=decision.version)
        return {**_kept_order(tables, asked, order, lambda: shown(image_id, asked)), "written": written}

    @app.post("/api/images/{image_id}/undo")
    def undo(request: Request, image_id: str) -> dict[str, Any]:
        tables.row(image_id)
        asked = _asked(request)
        order = tables.find(asked)
        undone = corrections.undo([image_id])
        return {**_kept_order(tables, asked, order, lambda: shown(image_id, asked)), "undone": undone}

    @app.post("/api/many")
    def many(given: ManyImages) -> dict[str, Any]:
        changed, left = corrections.decide_many([tables.row(image).image_id for image in given.image_ids],
                                                absent=given.absent)  # fmt: skip
        return {"changed": changed, "left": left}

    @app.post("/api/many/undo")
    def many_undo(given: ManyImages) -> dict[str, Any]:
        return {"undone": corrections.undo([tables.row(image).image_id for image in given.image_ids])}

    @app.get("/thumb/{image_id}.jpg")
    def thumbnail(image_id: str) -> Response:
        return Response(pictures.thumbnail(tables.row(image_id)), media_type="image/jpeg", headers=NO_CHANGE)

    @app.get("/full/{image_id}.jpg")
    def full(image_id: str) -> Response:
        return Response(pictures.full(tables.row(image_id)), media_type="image/jpeg", headers=NO_CHANGE)

    # ---- runs side by side, counts

    @app.get("/compare")
    def compare(
        request: Request,
        first: str = "",
        second: str = "",
        part: str = "",
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        tables.refresh()
        matrix = tables.agreement()
        if not (first and second) and len(tables.runs) > 1:
            first, second = tables.corrects or tables.runs[0], tables.label_run or tables.runs[1]
            if first == second:
                second = next(run for run in tables.runs if run != first)
        found, total = tables.compared(first, second, part, offset=offset, limit=PER_PAGE)
        for one in found:
            one["row"] = tables.row(one["image_id"])
        return page(
            "compare.html",
            request,
            matrix=matrix,
            pairs=list(dict.fromkeys((one["first_run"], one["second_run"]) for one in matrix)),
            first=first,
            second=second,
            part=part,
            found=found,
            total=total,
            offset=offset,
            per_page=PER_PAGE,
        )

    @app.get("/summary")
    def summary(request: Request) -> Response:
        tables.refresh()
        sample, population = tables.sample()
        return page(
            "summary.html",
            request,
            progress=tables.progress(),
            found=estimate(sample, population),
            population=population,
            margin=MARGIN,
            cameras=tables.without_box(),
            without_link=_without_box_link,
            tables=[("status", across, *tables.cross_table(across, "status")) for across in ("part", "flag")],
        )

    # ---- trained models

    def target(name: str, dataset: str) -> RankedTarget:
        for one in targets:
            if (one.name, one.dataset) == (name, dataset):
                return one
        raise UsageError("no such model or data set", fix="choose one from the list")

    @app.get("/failures")
    def failures(
        request: Request,
        model: str = "",
        dataset: str = "",
        against: str = "",
        sort: str = "ap",
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        if not targets:
            raise UsageError("no trained run was named", fix="dgreid review --run <run>")
        one = target(model or targets[0].name, dataset or targets[0].dataset)
        others = [other for other in targets if other.dataset == one.dataset and other.name != one.name]
        other = next((found for found in others if found.name == against), others[0] if others else None)
        precision = one.average_precision
        same = other is not None and len(other.query) == len(one.query)
        beside = other.average_precision if other and same else np.full_like(precision, np.nan)
        by = {"ap": precision, "worse": precision - beside, "better": beside - precision}.get(sort, precision)
        order = np.argsort(np.where(np.isnan(by), np.inf, by), kind="stable")
        chosen = order[offset : offset + PER_PAGE]
        return page(
            "failures.html",
            request,
            one=one,
            other=other,
            targets=targets,
            images=tables.images,
            sort=sort,
            offset=offset,
            per_page=PER_PAGE,
            total=len(order),
            rows=[
                {
                    "row": int(row),
                    "image_id": one.image_ids[int(one.query[row])],
                    "ap": float(precision[row]),
                    "beside": float(beside[row]),
                    "rank": int(one.first_rank[row]),
                    "split": int(one.split[row]),
                }
                for row in chosen
            ],
        )

    @app.get("/failures/query")
    def ranked(request: Request, model: str, dataset: str, row: Annotated[int, Query(ge=0)]) -> Response:
        one = target(model, dataset)
        if row >= len(one.query):
            raise UnknownImageError("there is no such query", fix="open it from the list")
        query = int(one.query[row])
        strips = []
        for other in targets:
            same = other.dataset == dataset and len(other.query) == len(one.query)
            if same and other.image_ids[int(other.query[row])] == one.image_ids[query]:
                found = neighbours(other, row, STRIP) if other.features is not None else []
                strips.append((other, found, float(other.average_precision[row])))
        masks = one.masks
        return page(
            "query.html",
            request,
            one=one,
            row=row,
            query_id=one.image_ids[query],
            strips=strips,
            areas=lambda image: _mask_areas(masks[image]) if image in masks else [],
            grid=next((mask.shape[1:] for mask in masks.values()), (1, 1)),
            mask_colours=PART_COLOURS * 9,
            rows=tables.images,
            splits=int(one.split.max()) + 1,
        )

    def feature_map_list() -> Sequence[FeatureMap]:
        if feature_maps is None:
            raise UsageError("no trained run was named", fix="dgreid review --run <run>")
        if not maps:
            maps.extend(feature_maps())
        return maps

    @app.get("/features")
    def features(request: Request) -> Response:
        return page("features.html", request)  # its script asks for the points, which may have to be made first

    @app.get("/api/features")
    def points() -> dict[str, Any]:
        with making_maps:
            found = feature_map_list()
        groups = list(dict.fromkeys(group for one in found for group in one.groups))
        return {
            "image_ids": [image for one in found for image in one.image_ids],
            "x": [round(float(x), 3) for one in found for x in one.places[:, 0]],
            "y": [round(float(y), 3) for one in found for y in one.places[:, 1]],
            "groups": {
                group: [value for one in found for value in one.groups.get(group, ["unknown"] * len(one.image_ids))]
                for group in groups
            },
        }

    app.mount("/static", StaticFiles(directory=Path(str(resources.files("labeler.review"))) / "static"))
    app.add_middleware(BodyLimit)
    app.add_middleware(TokenCheck, token=token, port=port)
    app.add_middleware(CallerCheck, host="127.0.0.1")
    return app


def _asked(request: Request) -> Asked:
    given = request.query_params
    return Asked(
        query=given.get("q", ""),
        sort=given.get("sort", ""),
        facets={name: tuple(found) for name in FACETS if (found := given.getlist(name))},
        picked=given.get("picked", ""),
    )


def _state(asked: Asked, **changes: Any) -> str:
    """The query string of a question."""
    pairs = [("q", asked.query), ("sort", asked.sort), ("picked", asked.picked)]
    pairs += [(name, value) for name, values in asked.facets.items() for value in values]
    return urlencode([(name, value) for name, value in pairs if value])


def _link(path: str, asked: Asked | None = None, toggle: tuple[str, str] | None = None, **values: Any) -> str:
    """The address of a page; `toggle`: with this value of a facet added, or removed where it is wanted already."""
    if asked is None:
        query = urlencode([(name, value) for name, value in values.items() if value != ""])
        return path + (f"?{query}" if query else "")
    facets = dict(asked.facets)
    if toggle:
        name, value = toggle
        before = facets.get(name, ())
        facets[name] = tuple(one for one in before if one != value) if value in before else (*before, value)
    changed = Asked(
        query=values.get("q", asked.query), sort=values.get("sort", asked.sort), facets=facets, picked=asked.picked
    )
    return path + (f"?{state}" if (state := _state(changed)) else "")


def _without_box_link(camera: str, part: str) -> str:
    statuses = tuple(status for status in LabelStatus if status != LabelStatus.OK)
    return _link("/", Asked(facets={"camera": (camera,), "part": (part,), "status": statuses}))


def _kept_order(
    tables: LabelTables, asked: Asked, order: tuple[str, list[str]], read: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """An answer in which neighbours are those of the list that the reviewer goes through."""
    tables.keep(*order)
    return read()


def _mask_areas(masks: np.ndarray) -> list[str]:
    """SVG paths of the visible patches of each part, in units of patches. masks bool [R, h, w]."""
    return ["".join(f"M{x} {y}h1v1h-1z" for y, x in zip(*np.nonzero(mask), strict=True)) for mask in masks]
