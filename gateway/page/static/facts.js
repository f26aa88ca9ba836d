// What an answer took: its tokens, of which picture, what was cached, and how fast it came.

import { h } from "./dom.js";
import { addWords, duration, number } from "./language.js";
import { gridWords } from "./tiles.js";
import { timingBar } from "./timing.js";

addWords({
  en: {
    "facts.prompt": "{count} prompt tokens",
    "facts.picture": "{count} from the picture",
    "facts.image": "{count} from pictures",
    "facts.pictures": "{count} from {pictures} pictures",
    "facts.cached": "{count} cached",
    "facts.output": "{count} output",
    "facts.ttft": "first token {ms}",
    "facts.speed": "{rate} tokens/s",
    "facts.of": "Picture {index}",
    "facts.tokens": "{count} tokens",
    "facts.source.llm": "the LLM service still had it",
    "facts.source.vision_cache": "from vision's cache",
    "facts.source.encoded": "encoded now",
    "facts.open": " (",
    "facts.comma": ", ",
    "facts.close": ")",
    "facts.pictureList": "Pictures of the request",
    "facts.seen": "Those are the gateway's times. Here: first token {first}, end {total}.",
  },
  zh: {
    "facts.prompt": "提示 {count} 个 token",
    "facts.picture": "图片占 {count} 个",
    "facts.image": "图片共占 {count} 个",
    "facts.pictures": "{pictures} 张图片占 {count} 个",
    "facts.cached": "缓存命中 {count} 个",
    "facts.output": "输出 {count} 个",
    "facts.ttft": "首个 token {ms}",
    "facts.speed": "{rate} token/s",
    "facts.of": "图片 {index}",
    "facts.tokens": "{count} 个 token",
    "facts.source.llm": "语言模型服务仍保留",
    "facts.source.vision_cache": "来自视觉缓存",
    "facts.source.encoded": "本次编码",
    "facts.open": "（",
    "facts.comma": "，",
    "facts.close": "）",
    "facts.pictureList": "本次请求的图片",
    "facts.seen": "以上为网关计时。本页面测得：首个 token {first}，结束 {total}。",
  },
});

/** Returns the elements that show an answer's facts; AnswerView.finish() says what these are. */
export function factsOf(facts) {
  const pictures = picturesOf(facts);
  const line = factLine(facts, pictures);
  const stages = facts.timing?.stages ?? {};
  const list = pictures.length ? [pictureList(pictures)] : [];
  const more = [...seenHere(facts), ...list];
  return [
    line.length ? h("p", { class: "answer-facts" }, line) : null,
    Object.keys(stages).length ? timingBar(stages, more) : null,
  ].filter(Boolean);
}

/** Returns what this page measured: the gateway's times are without the way to it. */
function seenHere({ ttftMs, totalMs }) {
  if (!ttftMs || !totalMs) return [];
  const values = { first: duration(ttftMs), total: duration(totalMs) };
  return [h("p", { class: "answer-seen", words: ["facts.seen", values] })];
}

function factLine({ usage, timing, ttftMs, totalMs }, pictures) {
  const stages = timing?.stages ?? {};
  const first = stages.first_token ?? ttftMs;
  const rate = tokenRate(usage?.completion_tokens, stages.decode ?? totalMs - first);
  const facts = usage ? usageFacts(usage, pictures) : [];
  if (first !== undefined) facts.push(fact("facts.ttft", { ms: duration(first) }));
  if (rate) facts.push(fact("facts.speed", { rate: number(rate, rate < 9.95 ? 1 : 0) }));
  return facts;
}

const fact = (key, values, ...more) =>
  h("span", { class: "answer-fact" }, h("span", { words: [key, values] }), ...more);

function usageFacts(usage, pictures) {
  const { cached_tokens: cached = 0, image_tokens: image = 0 } = usage.prompt_tokens_details ?? {};
  const counted = (key, count) => fact(key, { count: number(count) });
  return [
    counted("facts.prompt", usage.prompt_tokens),
    ...(image ? [pictureFact(image, pictures)] : []),
    counted("facts.cached", cached),
    counted("facts.output", usage.completion_tokens),
  ];
}

function pictureFact(imageTokens, pictures) {
  const count = number(imageTokens);
  if (pictures.length === 1) return fact("facts.picture", { count }, ...howOf(pictures[0]));
  if (!pictures.length) return fact("facts.image", { count });
  return fact("facts.pictures", { count, pictures: number(pictures.length) });
}

/** Returns " (3×2+1, encoded now)" as nodes, as far as it is known. */
function howOf(picture) {
  const grid = gridOf(picture);
  const source = picture.source ? h("span", { words: `facts.source.${picture.source}` }) : "";
  if (!grid && !source) return [];
  const mark = (name) => h("span", { words: `facts.${name}` });
  return [mark("open"), grid, grid && source ? mark("comma") : "", source, mark("close")];
}

// The first token came with the prefill.
const tokenRate = (count, milliseconds) =>
  count > 1 && milliseconds > 0 ? ((count - 1) * 1000) / milliseconds : null;

/** Returns what is known of each picture: [{name, source, grid, token_count}]. */
function picturesOf({ pictures = [], timing, usage }) {
  const images = timing?.images ?? [];
  const planned = pictures.map(({ plan }) => plan).filter(Boolean);
  const known = Array.from({ length: Math.max(pictures.length, images.length) }, (_, index) =>
    pictureOf(pictures[index] ?? {}, images[index] ?? {}),
  );
  const perTile =
    wholeRatio(usage?.prompt_tokens_details?.image_tokens, sum(known, "tile_count")) ??
    wholeRatio(sum(planned, "token_count"), sum(planned, "tile_count"));
  return known.map((picture) => ({
    ...picture,
    token_count: picture.token_count ?? picture.tile_count * perTile,
  }));
}

const SOURCES = ["llm", "vision_cache", "encoded"];

/** Of a picture that vision was not asked for this time, the grid is that of before, or planned. */
function pictureOf({ name = "", plan = null, used = null }, image) {
  const grid = { ...used, ...image };
  const isUsed = Boolean(grid.column_count);
  const { column_count, row_count, tile_count } = isUsed ? withTiles(grid) : (plan ?? {});
  const token_count = isUsed ? undefined : plan?.token_count;
  const shape = { column_count, row_count, tile_count, token_count };
  return { name, source: SOURCES.includes(image.source) ? image.source : null, ...shape };
}

const withTiles = (grid) => ({ ...grid, tile_count: tileCount(grid) });
const tileCount = (grid) => grid.column_count * grid.row_count + (grid.has_thumbnail ? 1 : 0);

const sum = (values, name) => values.reduce((total, value) => total + value[name], 0);

/** Returns what one tile is, if that comes out even; null if not, or if something is not known. */
function wholeRatio(tokens, tiles) {
  return Number.isInteger(tokens / tiles) ? tokens / tiles : null;
}

const gridOf = (picture) => (picture.column_count ? gridWords(picture) : "");

function pictureList(pictures) {
  const items = pictures.map((picture, index) => h("li", {}, pictureLine(picture, index + 1)));
  return h("ol", { class: "answer-pictures", label: "facts.pictureList" }, items);
}

function pictureLine(picture, index) {
  const { name, source, token_count: count } = picture;
  const grid = gridOf(picture);
  return [
    h("span", { words: ["facts.of", { index }] }),
    name ? h("span", { class: "answer-picture-name" }, name) : null,
    grid ? h("span", {}, grid) : null,
    count ? h("span", { words: ["facts.tokens", { count: number(count) }] }) : null,
    source ? h("span", { words: `facts.source.${source}` }) : null,
  ];
}
