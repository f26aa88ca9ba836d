"""Whether a service takes requests."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

HEALTHY = "serving"
SILENT = "no answer"
# The gateway asks both services before it answers.
PROBE_SECONDS = 5.0


def grpc_health(address: str) -> str:
    """Returns HEALTHY, SILENT or "draining" for a gRPC service."""
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS)
        except grpc.RpcError:
            return SILENT
    return HEALTHY if answer.status == health_pb2.HealthCheckResponse.SERVING else "draining"


def gateway_health(address: str) -> str:
    """Returns HEALTHY, SILENT, or why a gateway is not ready."""
    connection = HTTPConnection(address, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, HTTPException, ValueError):
        return SILENT
    finally:
        connection.close()
    return HEALTHY if response.status == 200 else "; ".join(body["reasons"].values())


def page_url(address: str) -> str:
    """Returns where a gateway has its page; empty where it has none, or does not answer."""
    connection = HTTPConnection(address, timeout=PROBE_SECONDS)
    try:
        connection.request("HEAD", "/")
        status = connection.getresponse().status
    except (OSError, HTTPException):
        return ""
    finally:
        connection.close()
    return f"http://{address}/" if status == 200 else ""
