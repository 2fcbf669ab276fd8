"""What `GET /jobs/{id}` would be without this service around it: FastAPI and SQLAlchemy, as their tutorials have it. For benchmarks.load.

MODALBRIDGE_DATABASE_URL=... uvicorn --factory benchmarks.bare:create_app
"""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import FastAPI, HTTPException
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.schemas import JobView
from app.jobs.table import Job
from app.settings import Settings


def create_app() -> FastAPI:
    app = FastAPI()
    sessions: sessionmaker[Session] = sessionmaker(sa.create_engine(Settings().sqlalchemy_url, pool_size=20, max_overflow=30))

    @app.get("/jobs/{job_id}", response_model=JobView)
    def get_job(job_id: str) -> JobView:
        with sessions() as session:
            job = session.get(Job, job_id)
            if job is None:
                raise HTTPException(404)
            return JobView.of(job)

    return app
