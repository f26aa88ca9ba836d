# The gateway: slim Python, no torch. Build from the repository's root:
#   docker build -f docker/gateway.Dockerfile -t internvl-gateway .
FROM python:3.12-slim
RUN useradd --uid 10001 service
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY protos protos
COPY vision_service vision_service
COPY llm_service llm_service
COPY gateway gateway
RUN pip install --no-cache-dir -c constraints.txt .
USER 10001
ENV INTERNVL_GATEWAY_HOST=0.0.0.0
EXPOSE 8000
# Alive, whether or not it finds its services: a new gateway would find them no better.
HEALTHCHECK --start-period=30s --interval=10s --timeout=6s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/live', timeout=5)"]
ENTRYPOINT ["internvl-gateway"]
