# The gateway: slim Python, no torch. Build from the repository's root:
#   docker build -f docker/gateway.Dockerfile -t internvl-gateway .
# By digest, so that a build next year starts from the same bytes; --build-arg takes another.
ARG PYTHON_IMAGE=python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea
FROM ${PYTHON_IMAGE} AS wheel
COPY locks/build.txt /locks/
RUN pip install --no-cache-dir --require-hashes -r /locks/build.txt
COPY pyproject.toml README.md LICENSE /source/
COPY protos /source/protos
COPY gateway /source/gateway
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels /source

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 service
# The dependencies, which a change of the code leaves as they are, and then the code.
COPY locks/gateway.txt /locks/
RUN pip install --no-cache-dir --require-hashes -r /locks/gateway.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl \
    && pip check \
    && rm -r /wheels /locks
USER 10001
ENV INTERNVL_GATEWAY_HOST=0.0.0.0
EXPOSE 8000
# Alive, whether or not it finds its services: a new gateway would find them no better.
HEALTHCHECK --start-period=30s --interval=10s --timeout=6s \
    CMD ["internvl-probe", "http://127.0.0.1:8000/health/live"]
ENTRYPOINT ["internvl-gateway"]
