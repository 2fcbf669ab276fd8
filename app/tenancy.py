"""Whose request it is. The embedded set-up has one tenant and asks for no key."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from app.database import EMBEDDED_TENANT


async def tenant_id() -> str:
    """A FastAPI dependency."""
    return EMBEDDED_TENANT


Tenant = Annotated[str, Depends(tenant_id)]
"""What a route takes as its tenant."""
