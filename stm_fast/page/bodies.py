"""What the page may send, as JSON. Places are in pixels of the frame, from its upper left corner."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from stm_fast.boxes import MAX_ID
from stm_fast.choices import Result

Index = Annotated[int, Field(ge=0, lt=10**9)]
ObjectId = Annotated[int, Field(ge=1, le=MAX_ID)]
# outside the frame too: a hand slips
_Place = Annotated[float, Field(ge=-(10**6), le=10**6, allow_inf_nan=False)]
_Radius = Annotated[float, Field(gt=0, le=10**4, allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1, max_length=100)]
_MOST_POINTS = 20_000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompt(_Body):
    """One gesture that gives or corrects the mask of an object in a frame; the tool decides which fields it needs."""

    frame: Index
    object: ObjectId
    tool: Literal["box", "lasso", "click", "brush", "clear"]
    box: tuple[_Place, _Place, _Place, _Place] | None = None
    points: Annotated[list[tuple[_Place, _Place]], Field(max_length=_MOST_POINTS)] = []
    point: tuple[_Place, _Place] | None = None
    add: bool = True
    radius: _Radius | None = None


class NewObject(_Body):
    """An object to add."""

    name: _Name | None = None


class ObjectChange(_Body):
    """What to change of an object."""

    name: _Name | None = None
    color: Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")] | None = None


class Marks(_Body):
    """The first and the last frame to be tracked and exported."""

    first: Index
    last: Index


class Track(_Body):
    """Where tracking starts, and whether it runs backwards."""

    frame: Index
    back: bool = False


class Export(_Body):
    """The results to write."""

    write: Annotated[list[Result], Field(min_length=1, max_length=50)]
