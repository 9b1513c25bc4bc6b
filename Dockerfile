# syntax=docker/dockerfile:1
# The control plane's image: no torch, no compiler, no shell needed, not root, read-only root file system.
#
# BASE may be pinned to a digest and may be any image with the same Python as BUILD_BASE (3.11 or newer) at the same
# path:  docker build --build-arg BASE=docker.io/library/python:3.12-slim@sha256:... \
#                     --build-arg BUILD_BASE=docker.io/library/python:3.12-slim@sha256:... .
# An index of your own, certificates, or folders of wheels: --secret id=pip,src=/path/of/pip.conf
ARG BASE=docker.io/library/python:3.12-slim
ARG BUILD_BASE=${BASE}

# Dependencies change rarely, sources often: so the dependencies are layers of their own.
FROM ${BUILD_BASE} AS dependencies
# pip stays outside the environment that is shipped.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /build && /build/bin/python -m pip install --quiet "pip==26.3" "hatchling==1.27.0" \
    && python3 -m venv --without-pip /venv
COPY requirements/operator.txt requirements/
# The kubernetes package is 75 MB of generated sources: it is shipped as bytecode only.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=cache,target=/root/.cache/pip \
    /build/bin/pip --python /venv/bin/python install --quiet --no-deps --require-hashes -r requirements/operator.txt \
    && find /venv -type d \( -name tests -o -name test \) -path '*/site-packages/*' -prune -exec rm -rf {} + \
    && python3 -m compileall -q -b /venv/lib/python3.*/site-packages/kubernetes \
    && find /venv/lib/python3.*/site-packages/kubernetes \( -name '*.py' -o -name __pycache__ \) -prune -exec rm -rf {} + \
    && for site in /venv/lib/python3.*/site-packages; do echo /app > "$site/app.pth"; done

FROM dependencies AS sources
COPY api api
COPY operator operator
RUN /build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels ./api ./operator \
    && /build/bin/pip --python /venv/bin/python install --quiet --no-deps --no-index --target /app /wheels/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="finetune-operator" \
      org.opencontainers.image.description="The control plane of FineTuneJob" \
      org.opencontainers.image.licenses="Apache-2.0"
# Some libraries ask for the user's name and home.
RUN echo 'nonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin' >> /etc/passwd
COPY --from=dependencies /venv /venv
COPY --from=sources /app /app
COPY LICENSE /app/LICENSE
ENV PATH=/app/bin:/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["finetune-operator"]
