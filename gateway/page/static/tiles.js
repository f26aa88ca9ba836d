// The tile view: a picture as the model gets it, its grid, its tokens, and where they come from.

import { addWords, number, say, t } from "./language.js";
import { canvasOf, stretched } from "./previews.js";
import { formatOf } from "./picture.js";
import { h, icon } from "./dom.js";
import { tiles } from "./api.js";

addWords({
  en: {
    "tiles.title": "Tiles",
    "tiles.close": "Close the tile view",
    "tiles.views": "View",
    "tiles.picture": "Picture",
    "tiles.model": "As the model sees it",
    "tiles.sheet": "The picture with its grid: {columns} × {rows} tiles",
    "tiles.cells":
      "{columns} × {rows} tiles, each {edge} × {edge} pixels, in the order the model reads them",
    "tiles.thumbnail": "Thumbnail",
    "tiles.thumbnailHow": "the whole picture in one tile",
    "tiles.cut": "{width} × {height} → {columns} × {rows} tiles",
    "tiles.whole": "{width} × {height} → 1 tile",
    "tiles.plus": " + thumbnail",
    "tiles.product": "= {count} × {each} = ",
    "tiles.tokens": "{count} tokens",
    "tiles.detail": "Detail",
    "tiles.auto": "Auto",
    "tiles.low": "Low",
    "tiles.high": "High",
    "tiles.cap": "Most tiles",
    "tiles.capHow":
      "Auto is up to {standard} tiles, low is 1, high is up to {most}. The thumbnail comes on top.",
    "tiles.capOwn": "Your limit of {cap} tiles goes before the detail.",
    "tiles.source": "Embedding",
    "tiles.llm": "The LLM service still had it: nothing was encoded or sent.",
    "tiles.vision_cache": "From the vision service's cache: not encoded again.",
    "tiles.encoded": "Encoded for this answer.",
    "tiles.address":
      "The gateway fetches the picture when you ask. The grid is known after the answer.",
    "tiles.later":
      "This browser cannot tell how large the picture is. The grid is known after the answer.",
    "tiles.unknown": "The grid that was used is not known.",
    "tiles.failed": "The tiles are not known now: {reason}",
    "tiles.unseen": "This browser cannot show the picture; the model can see it all the same.",
  },
  zh: {
    "tiles.title": "图块",
    "tiles.close": "关闭图块视图",
    "tiles.views": "视图",
    "tiles.picture": "原图",
    "tiles.model": "模型所见",
    "tiles.sheet": "图片及其网格：{columns} × {rows} 个图块",
    "tiles.cells": "{columns} × {rows} 个图块，每个 {edge} × {edge} 像素，按模型读取的顺序排列",
    "tiles.thumbnail": "缩略图",
    "tiles.thumbnailHow": "整张图片缩为一个图块",
    "tiles.cut": "{width} × {height} → {columns} × {rows} 个图块",
    "tiles.whole": "{width} × {height} → 1 个图块",
    "tiles.plus": " + 缩略图",
    "tiles.product": "= {count} × {each} = ",
    "tiles.tokens": "{count} 个 token",
    "tiles.detail": "精细度",
    "tiles.auto": "自动",
    "tiles.low": "低",
    "tiles.high": "高",
    "tiles.cap": "图块上限",
    "tiles.capHow": "自动最多 {standard} 块，低为 1 块，高最多 {most} 块，缩略图另计。",
    "tiles.capOwn": "已自定上限 {cap} 块，优先于精细度设置。",
    "tiles.source": "嵌入来源",
    "tiles.llm": "LLM 服务仍保留着，无需编码或传输。",
    "tiles.vision_cache": "来自视觉服务的缓存，没有重新编码。",
    "tiles.encoded": "为这次回答重新编码。",
    "tiles.address": "提问时由网关获取这张图片，回答之后才能看到网格。",
    "tiles.later": "浏览器无法得知图片尺寸，回答之后才能看到网格。",
    "tiles.unknown": "无法得知当时使用的网格。",
    "tiles.failed": "暂时无法得知图块：{reason}",
    "tiles.unseen": "浏览器无法显示这张图片，但模型可以看到。",
  },
});

const DETAILS = ["auto", "low", "high"];
const WAIT_MILLISECONDS = 60; // from a change of the slider to the question
const TILE_EDGE = 448;
const ONE_TILE = { width: TILE_EDGE, height: TILE_EDGE }; // to learn the limits alone
const WIDE = matchMedia("(min-width: 1000px)");

const plans = new Map();

/**
 * Returns what GET /v1/tiles says of a picture, from memory if it was asked before; null if the
 * browser does not know the picture's size.
 */
export function plan(picture, model, key) {
  const { width, height, detail, cap } = picture;
  if (!width || !height) return Promise.resolve(null);
  const limit = cap ? { max_dynamic_patch: cap } : detail === "auto" ? {} : { detail };
  return planned({ width, height, ...limit, model }, key);
}

function planned(query, key) {
  const name = JSON.stringify(query);
  if (!plans.has(name)) {
    const answer = tiles(query, key);
    plans.set(name, answer);
    answer.catch(() => plans.delete(name));
  }
  return plans.get(name);
}

/** Returns a grid in few words: "3×2+1", columns × rows and the thumbnail. */
export function gridWords({ column_count: columns, row_count: rows, has_thumbnail, tile_count }) {
  const plus = has_thumbnail ?? tile_count > columns * rows;
  return `${columns}×${rows}${plus ? "+1" : ""}`;
}

/** The panel beside the conversation, or over it on a small screen. */
export class TileView {
  #element;
  #picture = null;
  #options = {};
  #plan = null; // null if the picture's size is not known
  #limits = null; // of tiles, from any plan
  #problem = null; // why there is none
  #url = "";
  #turn = 0;
  #timer = 0;
  #opener = null;
  #isModelView = false;
  #title = h("h2", { id: "tiles-title" });
  #meta = h("p", { class: "tiles-meta" });
  #views = choice("tiles-view", "tiles.views", { picture: "tiles.picture", model: "tiles.model" });
  #stage = h("div", { class: "tiles-stage" });
  #facts = h("p", { class: "tiles-facts", role: "status" });
  #note = h("p", { class: "pictures-note tiles-note", role: "status" });
  #source = h("p", { class: "tiles-source" });
  #details = choice("tiles-detail", "tiles.detail", labels(DETAILS));
  #cap = h("input", { type: "range", min: 1, max: 12, id: "tiles-cap" });
  #capValue = h("output", { class: "pictures-value", for: "tiles-cap" });
  #capHow = h("p", { class: "pictures-note", id: "tiles-cap-how" });
  #settings;

  constructor(element) {
    this.#element = element;
    element.classList.add("tiles");
    element.setAttribute("aria-labelledby", this.#title.id);
    this.#settings = this.#form();
    const head = h("header", { class: "tiles-head" }, h("div", {}, this.#title, this.#meta));
    head.append(this.#closeButton());
    const answers = [this.#facts, this.#note, this.#source];
    const body = [this.#views, this.#stage, h("div", {}, answers), this.#settings];
    element.replaceChildren(head, h("div", { class: "tiles-body" }, body));
    this.#listen();
  }

  /**
   * Shows a picture. Options: `model` and `key` of the question, `editable`, `onChange`, and `used`,
   * what the answer's timing told of a picture that was sent.
   */
  open(picture, options = {}) {
    if (!this.#element.open) this.#opener = document.activeElement;
    this.#picture = picture;
    this.#options = options;
    this.#plan = null;
    this.#describe();
    this.#show();
    this.#update();
  }

  close() {
    this.#element.close();
  }

  get isOpen() {
    return this.#element.open;
  }

  get picture() {
    return this.#picture;
  }

  #closeButton() {
    const click = () => this.close();
    const button = h("button", { type: "button", class: "pictures-icon-button", on: { click } });
    say(button, "tiles.close", {}, "aria-label");
    button.append(icon("close"));
    return button;
  }

  #form() {
    const name = h("label", { for: this.#cap.id, words: "tiles.cap" });
    this.#cap.setAttribute("aria-describedby", this.#capHow.id);
    const slider = h("div", { class: "pictures-slider" }, name, this.#cap, this.#capValue);
    return h("div", { class: "tiles-settings" }, this.#details, slider, this.#capHow);
  }

  #listen() {
    const element = this.#element;
    element.addEventListener("close", () => this.#closed());
    element.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.defaultPrevented) this.close();
    });
    this.#views.addEventListener("change", ({ target }) => {
      this.#isModelView = target.value === "model";
      this.#draw();
    });
    this.#details.addEventListener("change", ({ target }) =>
      this.#change({ detail: target.value, cap: null }, 0),
    );
    this.#cap.addEventListener("input", () =>
      this.#change({ cap: Number(this.#cap.value) }, WAIT_MILLISECONDS),
    );
    WIDE.addEventListener("change", () => this.isOpen && (element.close(), this.#reopen()));
    document.addEventListener("languagechange", () => this.isOpen && this.#sayAll());
  }

  // A panel on a wide screen; elsewhere nothing beside it can be used.
  #show() {
    const element = this.#element;
    if (element.open) return;
    if (WIDE.matches) element.show();
    else element.showModal();
  }

  #reopen() {
    // The event of the closing comes later, and would let go of the picture.
    setTimeout(() => this.open(this.#picture, this.#options));
  }

  #closed() {
    if (this.isOpen) return;
    this.#turn++;
    URL.revokeObjectURL(this.#url);
    this.#url = "";
    this.#stage.replaceChildren();
    if (this.#opener?.isConnected) this.#opener.focus();
  }

  #describe() {
    const picture = this.#picture;
    const { used, editable } = this.#options;
    URL.revokeObjectURL(this.#url);
    this.#url = picture.blob ? URL.createObjectURL(picture.blob) : "";
    this.#title.textContent = picture.name;
    this.#title.title = picture.name;
    this.#meta.textContent = fileWords(picture, used);
    this.#settings.hidden = !editable;
  }

  #change(values, wait) {
    Object.assign(this.#picture, values);
    this.#sayChoice();
    this.#options.onChange?.(this.#picture);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#update(), wait);
  }

  /** Asks for the plan, then shows it; of several questions the last one is shown. */
  async #update() {
    const turn = ++this.#turn;
    const { model, key, used } = this.#options;
    const known = { plan: null, limits: null, problem: null };
    try {
      known.plan = await plan(seen(this.#picture, used), model, key);
      known.limits = known.plan ?? (await planned({ ...ONE_TILE, model }, key));
    } catch (error) {
      known.problem = error;
    }
    if (turn !== this.#turn) return;
    this.#plan = known.plan;
    this.#limits = known.limits;
    this.#problem = known.problem;
    this.#sayAll();
    this.#draw();
  }

  get #grid() {
    const { used } = this.#options;
    if (used?.column_count) return { ...this.#plan, ...used, tile_count: tileCount(used) };
    return this.#plan;
  }

  #sayAll() {
    this.#sayChoice();
    this.#sayFacts();
    this.#sayNote();
    const { source } = this.#options.used ?? {};
    this.#source.hidden = !source;
    if (source)
      this.#source.replaceChildren(
        h("strong", { words: "tiles.source" }),
        " ",
        h("span", { words: `tiles.${source}` }),
      );
  }

  #sayChoice() {
    const { detail, cap } = this.#picture;
    for (const input of this.#details.querySelectorAll("input")) {
      input.checked = !cap && input.value === detail;
    }
    this.#cap.disabled = !this.#limits;
    if (!this.#limits) return;
    const { max_tile_cap: most, default_tile_cap: standard } = this.#limits;
    const effective = cap ?? { auto: standard, low: 1, high: most }[detail] ?? most;
    this.#cap.max = most;
    this.#cap.value = effective;
    this.#capValue.textContent = effective;
    say(this.#capHow, cap ? "tiles.capOwn" : "tiles.capHow", { cap, standard, most });
  }

  #sayFacts() {
    const grid = this.#grid;
    this.#facts.hidden = !grid;
    this.#facts.replaceChildren(
      ...(grid ? facts(grid, seen(this.#picture, this.#options.used)) : []),
    );
  }

  #sayNote() {
    const [key, values] = this.#noteWords();
    this.#note.hidden = !key;
    this.#note.classList.toggle("pictures-problem", Boolean(this.#problem));
    if (key) say(this.#note, key, values);
  }

  #noteWords() {
    const { used } = this.#options;
    if (this.#problem && !used?.column_count)
      return ["tiles.failed", { reason: this.#problem.message }];
    if (!this.#grid && used) return ["tiles.unknown"];
    if (!this.#grid) return [this.#picture.kind === "url" ? "tiles.address" : "tiles.later"];
    return [this.#url && this.#picture.width ? null : "tiles.unseen"];
  }

  #draw() {
    const { width, height } = seen(this.#picture, this.#options.used);
    const isKnown = Boolean(this.#url && this.#picture.width);
    this.#views.hidden = !isKnown || !this.#grid;
    if (!width) return this.#stage.replaceChildren();
    if (this.#isModelView && isKnown && this.#grid) this.#drawModelView();
    else this.#stage.replaceChildren(...sheet(this.#url, width / height, this.#grid));
  }

  async #drawModelView() {
    const turn = this.#turn;
    const { column_count: columns, row_count: rows } = this.#grid;
    const hasThumbnail = this.#grid.tile_count > columns * rows;
    const edge = this.#plan?.tile_size ?? TILE_EDGE;
    const { blob } = this.#picture;
    const whole = await stretched(blob, columns * edge, rows * edge);
    const small = hasThumbnail ? await stretched(blob, edge, edge) : null;
    if (turn !== this.#turn || !this.#isModelView || !whole) return;
    this.#stage.replaceChildren(cells(whole, columns, rows, edge));
    if (small) this.#stage.append(thumbnail(canvasOf(small)));
  }
}

const labels = (names) => Object.fromEntries(names.map((name) => [name, `tiles.${name}`]));

const tileCount = ({ column_count: columns, row_count: rows, has_thumbnail: plus }) =>
  columns * rows + (plus ? 1 : 0);

/** Returns the picture with the size that is known of it: the browser's, or what the model saw. */
const seen = (picture, used) => ({
  ...picture,
  width: used?.width || picture.width,
  height: used?.height || picture.height,
});

/** Returns radio buttons that look like one control; `words` are their keys by their values. */
function choice(name, legend, words) {
  const set = h("fieldset", { class: "tiles-choice" }, h("legend", { words: legend }));
  for (const [value, key] of Object.entries(words)) {
    const input = h("input", { type: "radio", name, value });
    set.append(h("label", {}, input, h("span", { words: key })));
  }
  set.querySelector("input").checked = true;
  return set;
}

function fileWords(picture, used) {
  const { width, height } = seen(picture, used);
  const size = picture.blob && sizeWords(picture.blob.size);
  const kind = picture.blob ? formatOf(picture) : picture.url.split(",")[0];
  return [width ? `${width} × ${height}` : null, kind, size].filter(Boolean).join(" · ");
}

function sizeWords(byteCount) {
  if (byteCount < 1e6) return `${number(Math.max(1, byteCount / 1e3))} kB`;
  return `${number(byteCount / 1e6, 1)} MB`;
}

function facts(grid, { width, height }) {
  const { column_count: columns, row_count: rows, tile_count: count, token_count: tokens } = grid;
  const isOne = columns * rows === 1;
  const cut = t(isOne ? "tiles.whole" : "tiles.cut", { width, height, columns, rows });
  const plus = count > columns * rows ? t("tiles.plus") : "";
  const first = h("span", {}, width ? cut + plus : gridWords(grid));
  if (!tokens) return [first];
  const each = number(tokens / count);
  const sum = h("span", {}, t("tiles.product", { count, each }));
  sum.append(h("strong", {}, t("tiles.tokens", { count: number(tokens) })));
  return [first, " ", sum];
}

/** Returns the picture, or a plain sheet of its shape, under its grid; and its thumbnail. */
function sheet(url, ratio, grid) {
  const paper = h("div", { class: "tiles-sheet" }, url && picture(url));
  paper.style.setProperty("--ratio", ratio);
  if (!grid) return [paper];
  const { column_count: columns, row_count: rows, tile_count: count } = grid;
  paper.append(lines(columns, rows), numbers(columns, rows));
  paper.setAttribute("role", "img");
  say(paper, "tiles.sheet", { columns, rows }, "aria-label");
  return [paper, count > columns * rows && thumbnail(url ? picture(url) : blank())].filter(Boolean);
}

const blank = () => h("div", { class: "tiles-blank" });
const picture = (src) => h("img", { src, alt: "", decoding: "async", draggable: "false" });

function lines(columns, rows) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const inner = [
    ...Array.from({ length: columns - 1 }, (_, i) => `M${i + 1} 0V${rows}`),
    ...Array.from({ length: rows - 1 }, (_, i) => `M0 ${i + 1}H${columns}`),
  ];
  for (const name of ["tiles-halo", "tiles-line"]) {
    const path = document.createElementNS(svg.namespaceURI, "path");
    path.setAttribute("class", name);
    path.setAttribute("d", `M0 0H${columns}V${rows}H0Z${inner.join("")}`);
    svg.append(path);
  }
  return svg;
}

function numbers(columns, rows) {
  const list = h("div", { class: "tiles-numbers", "aria-hidden": "true" });
  list.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
  list.style.gridTemplateRows = `repeat(${rows}, 1fr)`;
  list.append(
    ...Array.from({ length: columns * rows }, (_, i) => h("span", {}, h("b", {}, `${i + 1}`))),
  );
  return list;
}

function cells(whole, columns, rows, edge) {
  const grid = h("div", { class: "tiles-cells", role: "img" });
  say(grid, "tiles.cells", { columns, rows, edge }, "aria-label");
  grid.style.setProperty("--columns", columns);
  grid.style.setProperty("--rows", rows);
  for (let i = 0; i < columns * rows; i++) {
    const area = [(i % columns) * edge, Math.floor(i / columns) * edge, edge, edge];
    grid.append(h("span", {}, canvasOf(whole, area), h("b", {}, `${i + 1}`)));
  }
  return grid;
}

function thumbnail(content) {
  const words = [
    h("strong", { words: "tiles.thumbnail" }),
    h("span", { words: "tiles.thumbnailHow" }),
  ];
  return h("figure", { class: "tiles-thumbnail" }, content, h("figcaption", {}, words));
}
