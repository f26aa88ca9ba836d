# The LLM service on its torch engine (CPU or CUDA). Build from the repository's root:
#   docker build -f docker/llm_service.Dockerfile -t internvl-llm .
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY vision_service vision_service
COPY llm_service llm_service
COPY gateway gateway
COPY constraints.txt .
RUN pip install --no-cache-dir -c constraints.txt ".[torch]"
RUN useradd --system service
USER service
ENV INTERNVL_LLM_HOST=0.0.0.0
# Threads that spin while they wait slow down whatever shares the cores.
ENV OMP_WAIT_POLICY=PASSIVE
EXPOSE 50052
ENTRYPOINT ["internvl-llm"]
