# Images: `serve` answers rankings and merges events, without torch; `serve-gpu` the same on a GPU; `train` makes the model;
# `load` sends load.  docs/deploy.md says more.
#   docker build --target serve -t farm-ranker:serve .
# BASE may be any Debian or Ubuntu with Python 3.11 or later and its venv module; GPU_BASE one with CUDA 13 and cuDNN 9.
ARG BASE=python:3.11-slim-bookworm
ARG GPU_BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

FROM ${BASE} AS base
ARG SOURCE=
ENV PATH=/opt/farm/bin:$PATH PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="FARM ranker" org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" org.opencontainers.image.source="${SOURCE}" \
      farm.sbom="/opt/farm/share/farm/sbom.cdx.json"
WORKDIR /var/lib/farm
RUN useradd --system --uid 10001 --user-group --no-create-home farm && chown farm:farm /var/lib/farm

# The same, and Python where there is none: the distribution's, whose mirrors keep no older version that could be pinned.
FROM ${GPU_BASE} AS gpu-base
ARG SOURCE=
ENV PATH=/opt/farm/bin:$PATH PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="FARM ranker" org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" org.opencontainers.image.source="${SOURCE}" \
      farm.sbom="/opt/farm/share/farm/sbom.cdx.json"
WORKDIR /var/lib/farm
# hadolint ignore=DL3008
RUN python3 -c "import ensurepip" || { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*; }
RUN useradd --system --uid 10001 --user-group --no-create-home farm && chown farm:farm /var/lib/farm

# Of each image: what the lock names, then the code, so that a change of the code installs nothing anew and is a small layer.
FROM base AS serve-deps
COPY deploy/image requirements/build.txt requirements/serve-cpu.txt /build/
RUN /build/install.sh serve-cpu.txt && /build/slim.sh

FROM serve-deps AS serve-code
COPY . /source
RUN /build/code.sh

FROM gpu-base AS serve-gpu-deps
COPY deploy/image requirements/build.txt requirements/serve-gpu.txt /build/
RUN /build/install.sh serve-gpu.txt && /build/slim.sh

FROM serve-gpu-deps AS serve-gpu-code
COPY . /source
RUN /build/code.sh

FROM base AS train-deps
ARG TORCH_INDEX=
COPY deploy/image requirements/build.txt requirements/train.txt requirements/torch.txt /build/
RUN /build/install.sh train.txt torch.txt

FROM train-deps AS train-code
COPY . /source
RUN /build/code.sh

FROM base AS load-deps
COPY deploy/image requirements/build.txt requirements/load.txt /build/
RUN /build/install.sh load.txt

FROM load-deps AS load-code
COPY . /source
RUN /build/code.sh

FROM base AS load
COPY --from=load-deps /opt/farm /opt/farm
COPY --from=load-code /code /opt/farm
COPY loadtest/locustfile.py /opt/farm/share/farm/
ENV LOCUST_LOCUSTFILE=/opt/farm/share/farm/locustfile.py
USER 10001
ENTRYPOINT ["locust"]
CMD ["--help"]

FROM base AS train
COPY --from=train-deps /opt/farm /opt/farm
COPY --from=train-code /code /opt/farm
USER 10001
ENTRYPOINT ["farm"]
CMD ["--help"]

# Both listen on every address, so `docker run` needs keys (-e FARM_API_KEYS_FILE=...), or, when only this machine can
# reach them (-p 127.0.0.1:8080:8080), -e FARM_OPEN=true.
FROM gpu-base AS serve-gpu
COPY --from=serve-gpu-deps /opt/farm /opt/farm
COPY --from=serve-gpu-code /code /opt/farm
ENV FARM_HOST=0.0.0.0 FARM_PORT=8080 FARM_ARTIFACT=/var/lib/farm/artifact FARM_STORE=lmdb:///var/lib/farm/store \
    FARM_PROVIDER=cuda
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["farm-healthy"]
ENTRYPOINT ["farm"]
CMD ["serve"]

FROM base AS serve
COPY --from=serve-deps /opt/farm /opt/farm
COPY --from=serve-code /code /opt/farm
ENV FARM_HOST=0.0.0.0 FARM_PORT=8080 FARM_ARTIFACT=/var/lib/farm/artifact FARM_STORE=lmdb:///var/lib/farm/store
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["farm-healthy"]
ENTRYPOINT ["farm"]
CMD ["serve"]
