"""Pages of lists whose entries have the ids of executions: those are in the order of time."""

import re
from typing import Annotated

from fastapi import Path, Query

from runtape.api.models import EXECUTION_EXAMPLE
from runtape.domain.errors import ValidationFailed
from runtape.domain.ids import ExecutionId

PAGE_LIMIT = 200

ExecutionIdPath = Annotated[ExecutionId, Path(examples=[EXECUTION_EXAMPLE])]

_CURSOR = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")

PageLimit = Annotated[int, Query(ge=1, le=PAGE_LIMIT)]
PageCursor = Annotated[str | None, Query(description="`next_cursor` of the page before", examples=[EXECUTION_EXAMPLE])]


def execution_cursor(cursor: str | None) -> ExecutionId | None:
    """Return where the page begins.  Raises: ValidationFailed."""
    if cursor is None:
        return None
    if not _CURSOR.match(cursor):
        raise ValidationFailed(f'"{cursor[:80]}" is no cursor; send the next_cursor of the page before', field="cursor")
    return ExecutionId(cursor)
