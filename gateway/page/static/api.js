// The gateway's HTTP API: the one place that adds the key, and makes APIErrors of what goes wrong.

import { jsonBlob } from "./json.js";
import { addWords, t } from "./language.js";
import { events } from "./sse.js";
import { parseTiming } from "./timing.js";

addWords({
  en: {
    "api.lost": "The connection was lost. Nothing is resumed: ask again.",
    "api.unreachable": "The gateway cannot be reached. See whether it still runs, then ask again.",
    "api.status": "The gateway, or a proxy before it, answered {status}.",
    "api.unreadable": "The gateway sent what is no answer. Ask again.",
  },
  zh: {
    "api.lost": "连接已断开，回答不会续传，请重新提问。",
    "api.unreachable": "无法连接网关。请确认它仍在运行，然后重新提问。",
    "api.status": "网关或其前面的代理返回了 {status}。",
    "api.unreadable": "网关返回的内容无法识别，请重新提问。",
  },
});

/**
 * Why there is no answer, or no whole one. Status 0: there was no HTTP answer, or it broke off; the
 * code is then "unreachable" or "connection_lost". `retryAfter` is in seconds, or null.
 */
export class APIError extends Error {
  constructor({ message, status = 0, param = null, code = null, retryAfter = null }) {
    super(message);
    this.name = "APIError";
    Object.assign(this, { status, param, code, retryAfter });
  }

  toJSON() {
    const { message, status, param, code, retryAfter } = this;
    return { message, status, param, code, retryAfter };
  }
}

/**
 * Yields what comes of a chat request: {type: "open"}, then deltas, finish, usage and timing.
 *
 * An aborted signal ends it quietly.
 *
 * @throws {APIError} the request was refused or failed, also later, in its stream.
 */
export async function* chat(request, { signal, key } = {}) {
  try {
    const streamed = { ...request, stream: true, stream_options: { include_usage: true } };
    const headers = { "content-type": "application/json", "x-internvl-server-timing": "1" };
    const post = { method: "POST", headers, body: await jsonBlob(streamed, isPicture), signal };
    const response = await call("/v1/chat/completions", key, post);
    yield { type: "open" };
    yield* answer(response.body);
  } catch (error) {
    if (!signal?.aborted) throw error;
  }
}

export const status = (key) => json("/v1/status", key);

/** Returns the tiles of a picture: `query` is {width, height, detail, ...}; null is left out. */
export function tiles(query, key) {
  const given = Object.entries(query).filter(([, value]) => (value ?? "") !== "");
  return json(`/v1/tiles?${new URLSearchParams(given)}`, key);
}

async function json(path, key) {
  const response = await call(path, key);
  return response.json().catch(() => {
    throw new APIError({ message: t("api.unreadable"), status: response.status });
  });
}

async function call(path, key, { headers = {}, ...options } = {}) {
  if (key) headers = { ...headers, authorization: `Bearer ${key}` };
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch {
    throw new APIError({ message: t("api.unreachable"), code: "unreachable" });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  const seconds = Number.parseFloat(response.headers.get("retry-after"));
  return apiError(error, response.status, Number.isFinite(seconds) ? seconds : null);
}

function apiError(error, status, retryAfter = null) {
  const { message, param = null, code = null } = typeof error === "object" ? (error ?? {}) : {};
  const words = message || t("api.status", { status });
  return new APIError({ message: words, status, param, code, retryAfter });
}

async function* answer(body) {
  for await (const event of unbroken(events(body))) {
    if (event.data === "[DONE]") return;
    if (event.data !== undefined) yield* chunk(event.data);
    else yield* comment(event.comment);
  }
  throw new APIError({ message: t("api.lost"), code: "connection_lost" });
}

async function* unbroken(source) {
  try {
    yield* source;
  } catch {
    throw new APIError({ message: t("api.lost"), code: "connection_lost" });
  }
}

function* comment(text) {
  const value = /^server-timing:\s*(.*)$/i.exec(text)?.[1];
  if (value) yield { type: "timing", ...parseTiming(value) };
}

// In a stream that has begun, an error's code and type tell what its status would have been.
const STATUSES = {
  model_not_found: 404,
  service_unavailable: 503,
  engine_dead: 503,
  model_mismatch: 503,
  deadline_exceeded: 504,
  rate_limit_error: 429,
  invalid_api_key: 401,
  permission_error: 403,
  server_error: 500,
};

function* chunk(data) {
  const { error, choices, usage } = readChunk(data);
  if (error) throw apiError(error, STATUSES[error.code] ?? STATUSES[error.type] ?? 400);
  const { delta, finish_reason: reason } = choices?.[0] ?? {};
  if (delta?.content) yield { type: "delta", text: delta.content };
  if (delta?.tool_calls) yield { type: "tool_calls", calls: delta.tool_calls };
  if (reason) yield { type: "finish", reason };
  if (usage) yield { type: "usage", usage };
}

function readChunk(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw new APIError({ message: t("api.unreadable"), code: "unreadable" });
  }
}

const DATA_URL = /^data:[\w.+\/-]*(?:;[\w.+\/=-]+)*;base64,/;
const escapes = (text) => ['"', "\\", "\n", "\r"].some((character) => text.includes(character));
const isPicture = (value) =>
  typeof value === "string" && value.length >= 65536 && DATA_URL.test(value) && !escapes(value);
