# The gateway: slim Python, no torch. Build from the repository's root:
#   docker build -f docker/gateway.Dockerfile -t internvl-gateway .
FROM python:3.12-slim AS wheel
COPY pyproject.toml README.md LICENSE /source/
COPY protos /source/protos
COPY gateway /source/gateway
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
RUN useradd --uid 10001 service
# The dependencies, which a change of the code leaves as they are, and then the code.
COPY pyproject.toml constraints.txt README.md LICENSE /source/
RUN pip install --no-cache-dir -c /source/constraints.txt /source
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --force-reinstall /wheels/*.whl \
    && rm -r /wheels /source
USER 10001
ENV INTERNVL_GATEWAY_HOST=0.0.0.0
EXPOSE 8000
# Alive, whether or not it finds its services: a new gateway would find them no better.
HEALTHCHECK --start-period=30s --interval=10s --timeout=6s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/live', timeout=5)"]
ENTRYPOINT ["internvl-gateway"]
