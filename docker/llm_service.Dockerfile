# The LLM service. Build from the repository's root:
#   docker build -f docker/llm_service.Dockerfile --target cpu -t internvl-llm .
#   docker build -f docker/llm_service.Dockerfile --target tensorrt_llm -t internvl-llm-tensorrt_llm .
# By digest, so that a build next year starts from the same bytes; --build-arg takes another.
ARG PYTHON_IMAGE=python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea
ARG TENSORRT_LLM_IMAGE=nvcr.io/nvidia/tensorrt-llm/release:1.2.1@sha256:33cd085b772947bd22b7273886539331420404e5d2a4a039945241945ff927b9
FROM ${PYTHON_IMAGE} AS wheel
COPY locks/build.txt /locks/
RUN pip install --no-cache-dir --require-hashes -r /locks/build.txt
COPY pyproject.toml README.md LICENSE /source/
COPY protos /source/protos
COPY llm_service /source/llm_service
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels /source

# The TensorRT-LLM engine, and its builder: internvl-llm-build. This is the last
# stable release that runs TensorRT engines.
FROM ${TENSORRT_LLM_IMAGE} AS tensorrt_llm
RUN useradd --uid 10001 service
WORKDIR /app
# The dependencies, which a change of the code leaves as they are, and then the code. Their versions
# go with all that TensorRT-LLM requires; what it needs as it is, like torch, is not among them. The
# image's own PIP_CONSTRAINT holds much more. Ubuntu's Python refuses pip unless it is told.
COPY locks/tensorrt.txt /locks/
RUN PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT='' \
    pip install --no-cache-dir --no-deps --require-hashes -r /locks/tensorrt.txt
COPY --from=wheel /wheels /wheels
RUN PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT='' \
    pip install --no-cache-dir --no-deps /wheels/*.whl \
    && rm -r /wheels /locks
USER 10001
# As in the other target, see below.
ENV HOME=/tmp USER=service OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=300
EXPOSE 50052
HEALTHCHECK --start-period=15m --interval=10s --timeout=6s \
    CMD ["internvl-probe", "127.0.0.1:50052"]
# The vendor's: it takes the image's CUDA libraries where the machine's driver is older than they are.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]
CMD ["internvl-llm", "--host", "0.0.0.0", "--engine", "tensorrt_llm"]

# The torch engine. PyPI's torch has CUDA in it, so a GPU that this container is given is used, too;
# --build-arg PIP_EXTRA_INDEX_URL=(PyTorch's index of CPU wheels) saves its gigabytes.
FROM ${PYTHON_IMAGE} AS cpu
ARG PIP_EXTRA_INDEX_URL
# Another index has another torch, with hashes of its own: then torch alone comes unchecked.
ARG TORCH_LOCK=${PIP_EXTRA_INDEX_URL:+models}
RUN useradd --uid 10001 service
COPY constraints.txt locks/models.txt locks/torch.txt /locks/
RUN pip install --no-cache-dir --require-hashes -r /locks/models.txt \
        -r "/locks/${TORCH_LOCK:-torch}.txt" \
    && pip install --no-cache-dir -c /locks/constraints.txt torch
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl \
    && pip check \
    && rm -r /wheels /locks
USER 10001
# Caches go to /tmp, the one place that a read-only container can write to.
# Threads that spin while they wait slow down whatever shares the cores; to spin some microseconds
# before they sleep is cheaper than to wake them for each product.
ENV HOME=/tmp USER=service OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=300
ENV INTERNVL_LLM_HOST=0.0.0.0
EXPOSE 50052
HEALTHCHECK --start-period=15m --interval=10s --timeout=6s \
    CMD ["internvl-probe", "127.0.0.1:50052"]
ENTRYPOINT ["internvl-llm"]
