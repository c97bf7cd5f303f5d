# Two images: `api` (API and reaper, no torch) and `worker` (the model as well).
#   docker build --target api -t cointeract-api .     docker build --target worker -t cointeract-worker .
# For GPUs, deploy/compose.gpu.yml gives the arguments; docs/operations.md says how large the images are.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# Started over from the files of the base image: where its / is closed to all but root, no later layer can open it.
FROM ${PYTHON_IMAGE} AS python
FROM scratch AS base
COPY --from=python / /
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/app:/app/client LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    COINTERACT_DATA_DIR=/data COINTERACT_HOST=0.0.0.0 HF_HUB_OFFLINE=1
# A fixed uid: the containers share the data volume.
RUN useradd --create-home --uid 10001 cointeract && install -d -o cointeract -g cointeract /data
WORKDIR /app
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["cointeract"]

# Dependencies before our code, so that a changed line does not install them again. The project itself is installed
# without its packages (there are none here yet): that gives the `cointeract` command, which finds them in /app.
FROM base AS api-dependencies
COPY pyproject.toml constraints.txt ./
RUN touch README.md && python -m venv /opt/venv && pip install --constraint constraints.txt '.[s3,traces]'

FROM api-dependencies AS worker-dependencies
# Which build of torch: as pip's index has it, on x86-64 usually with CUDA. `torch===2.13.0` takes that one even where
# an index of CPU builds is at hand; PIP_EXTRA_INDEX_URL names such an index, whose build then comes first.
ARG TORCH=torch
ARG PIP_EXTRA_INDEX_URL
RUN pip install --constraint constraints.txt "$TORCH" && pip install --constraint constraints.txt '.[model,s3,traces]'

FROM base AS api
COPY --from=api-dependencies /opt/venv /opt/venv
COPY . .
RUN python -m deploy.sbom > sbom.json
USER cointeract
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["cointeract", "healthy", "api"]
CMD ["serve"]

FROM base AS worker
# Debian packages to add: on GPUs a C compiler, with which Triton builds what starts its kernels.
ARG DEBIAN_PACKAGES=""
RUN [ -z "$DEBIAN_PACKAGES" ] || { apt-get update && \
    apt-get install --yes --no-install-recommends $DEBIAN_PACKAGES && rm -rf /var/lib/apt/lists/*; }
COPY --from=worker-dependencies /opt/venv /opt/venv
COPY . .
RUN python -m deploy.sbom > sbom.json
# What is compiled goes where a read-only container can write.
ENV TRITON_CACHE_DIR=/tmp/triton TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
USER cointeract
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s CMD ["cointeract", "healthy", "worker"]
# Without --checkpoint it renders with the bundled small one: the image runs anywhere as it is.
CMD ["worker"]
