# The LLM service. Build from the repository's root:
#   docker build -f docker/llm_service.Dockerfile --target cpu -t internvl-llm .
#   docker build -f docker/llm_service.Dockerfile --target tensorrt_llm -t internvl-llm-tensorrt_llm .
FROM python:3.12-slim AS wheel
COPY pyproject.toml README.md LICENSE /source/
COPY protos /source/protos
COPY llm_service /source/llm_service
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

# The TensorRT-LLM engine, and its builder: internvl-llm-build. This is the last
# stable release that runs TensorRT engines.
FROM nvcr.io/nvidia/tensorrt-llm/release:1.2.1 AS tensorrt_llm
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN useradd --uid 10001 service
WORKDIR /app
# The dependencies, which a change of the code leaves as they are, and then the code. What
# TensorRT-LLM needs as it is stays so, or pip fails. The image's own PIP_CONSTRAINT holds much
# more, which our dependencies may have to replace. Ubuntu's Python refuses pip unless it is told.
COPY pyproject.toml constraints.txt README.md LICENSE /source/
RUN pip list --format=freeze \
    | grep -iE '^(llguidance|numpy|tensorrt.*|torch|triton)==' > /source/held.txt \
    && PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT='' \
    pip install --no-cache-dir -c /source/held.txt "/source[models]"
COPY --from=wheel /wheels /wheels
RUN PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT='' \
    pip install --no-cache-dir --no-deps --force-reinstall /wheels/*.whl \
    && rm -r /wheels /source
USER 10001
# As in the other target, see below.
ENV HOME=/tmp USER=service OMP_WAIT_POLICY=PASSIVE
EXPOSE 50052
HEALTHCHECK --start-period=15m --interval=10s --timeout=6s \
    CMD ["python", "-c", "import grpc, sys; from grpc_health.v1 import health_pb2, health_pb2_grpc; answer = health_pb2_grpc.HealthStub(grpc.insecure_channel('127.0.0.1:50052')).Check(health_pb2.HealthCheckRequest(), timeout=5); sys.exit(answer.status != answer.SERVING)"]
# The vendor's: it takes the image's CUDA libraries where the machine's driver is older than they are.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]
CMD ["internvl-llm", "--host", "0.0.0.0", "--engine", "tensorrt_llm"]

# The torch engine. PyPI's torch has CUDA in it, so a GPU that this container is given is used, too;
# --build-arg PIP_EXTRA_INDEX_URL=(PyTorch's index of CPU wheels) saves its gigabytes.
FROM python:3.12-slim AS cpu
ARG PIP_EXTRA_INDEX_URL
RUN useradd --uid 10001 service
COPY pyproject.toml constraints.txt README.md LICENSE /source/
RUN pip install --no-cache-dir -c /source/constraints.txt "/source[torch]"
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps --force-reinstall /wheels/*.whl \
    && rm -r /wheels /source
USER 10001
# Caches go to /tmp, the one place that a read-only container can write to.
# Threads that spin while they wait slow down whatever shares the cores.
ENV HOME=/tmp USER=service OMP_WAIT_POLICY=PASSIVE
ENV INTERNVL_LLM_HOST=0.0.0.0
EXPOSE 50052
HEALTHCHECK --start-period=15m --interval=10s --timeout=6s \
    CMD ["python", "-c", "import grpc, sys; from grpc_health.v1 import health_pb2, health_pb2_grpc; answer = health_pb2_grpc.HealthStub(grpc.insecure_channel('127.0.0.1:50052')).Check(health_pb2.HealthCheckRequest(), timeout=5); sys.exit(answer.status != answer.SERVING)"]
ENTRYPOINT ["internvl-llm"]
