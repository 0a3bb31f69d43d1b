# The image of every process of a cluster: gateway, projector, api, migrate. `up`, the lab and the tests stay outside.
#
#   docker build -t hublog .
#   docker run --rm hublog gateway --help
#
# It needs no writable path, no user of its own in /etc/passwd and no capability:
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges hublog …

# Renew tag and digest together. Any Python from 3.11 to 3.13 on glibc will do: --build-arg PYTHON_IMAGE=…
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

# Everything is put together here; the image itself only copies, and so has neither pip's cache nor the locks.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
COPY locks/image.txt /build/image.txt
# Wheels only: no compiler is needed here either, and nothing that is not in the lock runs.
RUN python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --quiet \
        --require-hashes --no-deps --only-binary :all: -r /build/image.txt
COPY events /app/events
COPY projections /app/projections
COPY migrations /app/migrations
COPY service /app/service
# Compiled now, because the root file system will be read-only; readable by any user, whatever the checkout's umask was.
RUN python -m compileall -q --invalidation-mode checked-hash /app \
    && chmod -R u=rwX,go=rX /app /opt/venv

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="hublog" \
      org.opencontainers.image.description="An event-sourced session service on NATS JetStream for any SignalR client"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# PYTHONSAFEPATH: a folder named `service` where a container happens to start does not take ours' place.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 65532:65532
EXPOSE 8000 8100 8200 8300 8301
ENTRYPOINT ["python", "-m", "service"]
CMD ["--help"]
