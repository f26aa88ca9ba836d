// Where the time of an answer went: the gateway's Server-Timing, and its bar.

import { h } from "./dom.js";
import { addWords, duration, number } from "./language.js";

const STAGES = [
  ...["body", "fetch", "preprocess", "queue", "forward", "travel"],
  ...["transfer", "prefill", "decode", "other"],
];

const EN = {
  "timing.title": "Where the time went: {total}",
  "timing.stage": "Stage",
  "timing.time": "Time",
  "timing.share": "Share",
  "timing.total": "in all",
  "timing.body": "receive",
  "timing.note.body": "the request's bytes arrive",
  "timing.fetch": "fetch",
  "timing.note.fetch": "pictures are read, or fetched from their addresses",
  "timing.preprocess": "preprocess",
  "timing.note.preprocess": "pictures are decoded and cut into tiles",
  "timing.queue": "queue",
  "timing.note.queue": "tiles wait for a place in a batch",
  "timing.forward": "ViT",
  "timing.note.forward": "tiles pass through the vision transformer",
  "timing.travel": "to vision and back",
  "timing.note.travel": "the picture's way there, the embedding's way back",
  "timing.transfer": "transfer",
  "timing.note.transfer": "embeddings go to the LLM service",
  "timing.prefill": "prefill",
  "timing.note.prefill": "the prompt is read, up to the first token",
  "timing.decode": "decode",
  "timing.note.decode": "the other tokens are written",
  "timing.other": "other",
  "timing.note.other": "what no stage accounts for",
};

const ZH = {
  "timing.title": "时间去向：{total}",
  "timing.stage": "阶段",
  "timing.time": "用时",
  "timing.share": "占比",
  "timing.total": "合计",
  "timing.body": "接收",
  "timing.note.body": "接收请求数据",
  "timing.fetch": "取图",
  "timing.note.fetch": "读取图片或从网址下载",
  "timing.preprocess": "预处理",
  "timing.note.preprocess": "解码图片并切块",
  "timing.queue": "排队",
  "timing.note.queue": "图块等待进入批次",
  "timing.forward": "ViT",
  "timing.note.forward": "图块通过视觉编码器",
  "timing.travel": "往返视觉服务",
  "timing.note.travel": "图片送达与特征返回",
  "timing.transfer": "传输",
  "timing.note.transfer": "特征送往语言模型服务",
  "timing.prefill": "预填充",
  "timing.note.prefill": "读入提示，直到首个 token",
  "timing.decode": "解码",
  "timing.note.decode": "生成其余 token",
  "timing.other": "其他",
  "timing.note.other": "未归入任何阶段的时间",
};

for (const stage of STAGES) {
  EN[`timing.tip.${stage}`] = `${EN[`timing.${stage}`]}: {ms}, {percent} %`;
  ZH[`timing.tip.${stage}`] = `${ZH[`timing.${stage}`]}：{ms}，占 {percent}%`;
}
addWords({ en: EN, zh: ZH });

/**
 * Reads a Server-Timing value: {stages: {fetch: 1.2, ...}, images: [{source, ...} or null, ...]}.
 *
 * Durations are milliseconds. What cannot be read is passed over.
 */
export function parseTiming(value) {
  const stages = {};
  const images = [];
  for (const { name, dur, desc } of metrics(value)) {
    const image = /^image-(\d{1,3})$/.exec(name);
    if (image && desc !== undefined) images[image[1] - 1] = parseImage(desc);
    else if (Number.isFinite(dur) && dur >= 0) stages[name] = dur;
  }
  return { stages, images: Array.from(images, (image) => image ?? null) };
}

const METRIC = /([\w.-]+)((?:\s*;\s*[\w-]+\s*(?:=\s*(?:"(?:\\.|[^"\\])*"|[^\s;,"]*))?)*)/g;
const PARAMETER = /([\w-]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^\s;,"]*))/g;

function* metrics(value) {
  for (const [, name, parameters] of value.matchAll(METRIC)) {
    const metric = { name };
    for (const [, key, quoted, plain] of parameters.matchAll(PARAMETER)) {
      metric[key] ??= quoted?.replace(/\\(.)/g, "$1") ?? plain;
    }
    yield { ...metric, dur: metric.dur ? Number(metric.dur) : undefined };
  }
}

// "encoded 3x2+1 1200x800": where from, the grid and its thumbnail, pixels of the upright picture.
const IMAGE = /^(\w+)(?: (\d+)x(\d+)(\+1)?(?: (\d+)x(\d+))?)?/;

function parseImage(desc) {
  const [, source, columns, rows, thumbnail, width, height] = IMAGE.exec(desc) ?? [];
  if (!source) return null;
  if (!columns) return { source };
  const grid = { column_count: Number(columns), row_count: Number(rows) };
  const pixels = width ? { width: Number(width), height: Number(height) } : {};
  return { source, ...grid, has_thumbnail: Boolean(thumbnail), ...pixels };
}

/**
 * Returns [{stage, ms, share}] of what happened, in order, with "other" for what no stage tells.
 *
 * encode_wait is told apart: what vision did, and "travel" for the way there and back.
 */
export function breakdown(stages) {
  const { encode_wait: wait = 0, preprocess = 0, queue = 0, forward = 0 } = stages;
  const travel = Math.max(0, wait - preprocess - queue - forward);
  const named = STAGES.map((stage) => ({ stage, ms: { ...stages, travel }[stage] ?? 0 }));
  const told = named.reduce((sum, { ms }) => sum + ms, 0);
  const total = Math.max(stages.total ?? 0, told);
  named.at(-1).ms = total - told;
  return named
    .filter(({ ms }) => ms > 0)
    .map(({ stage, ms }) => ({ stage, ms, share: ms / total }));
}

/** Returns the bar of an answer's stages; it opens to the numbers, and to `more` elements. */
export function timingBar(stages, more = []) {
  const parts = breakdown(stages);
  const total = duration(parts.reduce((sum, { ms }) => sum + ms, 0));
  const title = h("span", { class: "answer-timing-title", words: ["timing.title", { total }] });
  const summary = h("summary", {}, title, bar(parts));
  return h("details", { class: "answer-timing" }, summary, legend(parts, total), ...more);
}

const SMALLEST_SHARE = 0.01;

function bar(parts) {
  const wide = parts.filter(({ stage, share }) => stage !== "other" && share >= SMALLEST_SHARE);
  const rest = parts.filter((part) => !wide.includes(part));
  const segments = wide.map(segment);
  if (rest.length) {
    const sum = (name) => rest.reduce((total, part) => total + part[name], 0);
    segments.push(segment({ stage: "other", ms: sum("ms"), share: sum("share") }));
  }
  return h("span", { class: "answer-bar", "aria-hidden": "true" }, segments);
}

function segment({ stage, ms, share }) {
  const tip = [`timing.tip.${stage}`, { ms: duration(ms), percent: number(100 * share) }];
  const element = h("span", { class: "answer-stage", data: { stage }, tip });
  element.style.flexGrow = share;
  return element;
}

function legend(parts, total) {
  const heads = ["timing.stage", "timing.time", "timing.share"];
  const head = h("tr", {}, ...heads.map((words) => h("th", { scope: "col", words })));
  const rows = parts.map(row);
  const sum = [h("th", { scope: "row", words: "timing.total" }), h("td", {}, total), h("td")];
  return h(
    "table",
    { class: "answer-legend" },
    h("caption", { class: "answer-unseen", words: ["timing.title", { total }] }),
    h("thead", { class: "answer-unseen" }, head),
    h("tbody", {}, rows),
    h("tfoot", {}, h("tr", {}, sum)),
  );
}

function row({ stage, ms, share }) {
  const swatch = h("span", { class: "answer-swatch", data: { stage } });
  const name = h("span", { words: `timing.${stage}` });
  const note = h("span", { class: "answer-legend-note", words: `timing.note.${stage}` });
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, swatch, name, note),
    h("td", {}, duration(ms)),
    h("td", {}, `${number(100 * share, share < 0.0995 ? 1 : 0)} %`),
  );
}
