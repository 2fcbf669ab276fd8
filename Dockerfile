# syntax=docker/dockerfile:1
# The front end, and the two one-shots: migrations and the bucket. No torch: none of them runs a model.
FROM python:3.11.15-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
# What is needed first, by itself: a change of our code then leaves this layer as it is.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extra = project['optional-dependencies']; \
print(*project['dependencies'], *extra['postgres'], *extra['otel'], sep='\n')" > requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY app app
COPY worker worker
COPY migrations migrations
RUN pip install --no-cache-dir --no-deps .

FROM python:3.11.15-slim-trixie
LABEL org.opencontainers.image.title="ModalBridge, front end" org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A volume that is mounted there for the first time takes over the folder's owner.
RUN groupadd --gid 10001 modalbridge \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin modalbridge \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/modalbridge
COPY --from=build /venv /venv
WORKDIR /srv
COPY alembic.ini ./
COPY migrations migrations
COPY deploy/bucket.py deploy/bucket.py
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["uvicorn", "--factory", "app.main:create_app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "20"]
