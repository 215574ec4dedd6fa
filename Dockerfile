# Two images: `serve` answers rankings, without torch; `train` makes the model.
#   docker build --target serve -t farm-ranker:serve .
#   docker build --target train -t farm-ranker:train .
# BASE may be any image with Python 3.11 or later, its venv module and pip.
ARG BASE=python:3.11-slim

FROM ${BASE} AS base
ENV PATH=/opt/farm/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /var/lib/farm
RUN useradd --system --uid 10001 --user-group --no-create-home farm && chown farm:farm /var/lib/farm

FROM base AS serve-build
RUN python3 -m venv /opt/farm
COPY requirements/serve-cpu.txt /build/requirements/
RUN pip install --require-hashes --no-deps -r /build/requirements/serve-cpu.txt
COPY . /build
RUN pip install --no-deps /build

FROM base AS train-build
ARG TORCH_INDEX=
RUN python3 -m venv /opt/farm
COPY requirements/train.txt requirements/torch.txt /build/requirements/
RUN pip install --require-hashes --no-deps -r /build/requirements/train.txt \
    && pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} -r /build/requirements/torch.txt
COPY . /build
RUN pip install --no-deps /build

FROM base AS train
COPY --from=train-build /opt/farm /opt/farm
USER 10001
ENTRYPOINT ["farm"]
CMD ["--help"]

# It listens on every address, so `docker run` needs keys (-e FARM_API_KEYS_FILE=...), or, when only this machine can
# reach it (-p 127.0.0.1:8080:8080), -e FARM_OPEN=true.
FROM base AS serve
COPY --from=serve-build /opt/farm /opt/farm
ENV FARM_HOST=0.0.0.0 FARM_PORT=8080 FARM_ARTIFACT=/var/lib/farm/artifact FARM_STORE=lmdb:///var/lib/farm/store
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python3", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['FARM_PORT']), timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["farm"]
CMD ["serve"]
