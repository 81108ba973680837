"""What numbers and names of the configuration may be."""

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Ranges: beyond them numbers overflow in one library or another, or a run would never end.
Count = Annotated[int, Field(ge=1, le=10**7)]
Amount = Annotated[int, Field(ge=0, le=10**7)]
Few = Annotated[int, Field(ge=1, le=10**4)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what all random generators take
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]
Limit = Annotated[float, Field(gt=0, le=1e9)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
# A path, or a name on the hub; a ~ stays as it is where no home is known.
Place = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """A table of the file; a key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
