# The gateway: slim Python, no torch. Build from the repository's root:
#   docker build -f docker/gateway.Dockerfile -t internvl-gateway .
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY vision_service vision_service
COPY llm_service llm_service
COPY gateway gateway
RUN pip install --no-cache-dir .
RUN useradd --system service
USER service
ENV INTERNVL_GATEWAY_HOST=0.0.0.0
EXPOSE 8000
ENTRYPOINT ["internvl-gateway"]
