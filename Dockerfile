# ccgateway2mqtt in a container. Mount a directory or files at /config (config.yaml, secrets.yaml, CA files) and a
# volume at /data; config.yaml says `storage: {path: /data/ccgateway2mqtt.db}`. Everything else may be read-only.
# A stop takes up to 20 s, so give it `--stop-timeout 30`. examples/compose/ has all of it, examples/compose-cluster/ and
# examples/kubernetes/ have several of it.

FROM python:3.13-slim-bookworm AS build

# Where pip looks, if not at its default.
ARG PIP_INDEX_URL

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schemas ./schemas
COPY adapter ./adapter

# The environment is made where it will stay: its scripts name their interpreter by its path. What builds it is pinned
# like what is in it, and stays behind.
RUN python3 -m venv --without-pip /opt/ccgateway2mqtt \
    && python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir --constraint constraints.txt pip \
    && /build/bin/pip wheel --no-cache-dir --no-deps --build-constraint constraints.txt --wheel-dir /dist . \
    && set -- /dist/*.whl \
    && /build/bin/pip --python /opt/ccgateway2mqtt/bin/python3 install --no-cache-dir --constraint constraints.txt "$1[cluster]"


FROM python:3.13-slim-bookworm

LABEL org.opencontainers.image.title="ccgateway2mqtt" \
      org.opencontainers.image.description="A contact centre's agent events, from the CC-Gateway's long polling to MQTT" \
      org.opencontainers.image.licenses="MIT"

# The number is part of the interface: secrets and volumes are given to it.
RUN groupadd --gid 10001 ccgateway2mqtt \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin ccgateway2mqtt \
    && install -d -o 10001 -g 10001 -m 0700 /data

COPY --from=build /opt/ccgateway2mqtt /opt/ccgateway2mqtt

ENV PATH=/opt/ccgateway2mqtt/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD ["ccgateway2mqtt", "health", "-c", "/config/config.yaml"]

# No shell in between: SIGTERM has to reach the adapter.
ENTRYPOINT ["ccgateway2mqtt"]
CMD ["run", "-c", "/config/config.yaml"]
