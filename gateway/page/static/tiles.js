// The tile view: a picture as the model gets it, its grid, its tokens, and where they come from.

import { addWords, number, say, t } from "./language.js";
import { h, icon } from "./dom.js";
import { Stage } from "./stage.js";
import { formatOf } from "./picture.js";
import { tiles } from "./api.js";

addWords({
  en: {
    "tiles.title": "Tiles",
    "tiles.close": "Close the tile view",
    "tiles.views": "View",
    "tiles.picture": "Picture",
    "tiles.model": "As the model sees it",
    "tiles.cut": "{width} × {height} → {columns} × {rows} tiles",
    "tiles.whole": "{width} × {height} → 1 tile",
    "tiles.plus": " + thumbnail",
    "tiles.product": " = {count} × {each}",
    "tiles.tokens": "{count} tokens",
    "tiles.detail": "Detail",
    "tiles.auto": "Auto",
    "tiles.low": "Low",
    "tiles.high": "High",
    "tiles.cap": "Tile limit",
    "tiles.capHow":
      "Auto is up to {standard} tiles, low is 1, high is up to {most}. The thumbnail comes on top.",
    "tiles.capOwn": "Your limit of {cap} tiles goes before the detail.",
    "tiles.source": "In the last answer",
    "tiles.llm": "The LLM service still had it: nothing was encoded or sent.",
    "tiles.vision_cache": "From the vision service's cache: not encoded again.",
    "tiles.encoded": "Encoded for this answer.",
    "tiles.address":
      "The gateway fetches the picture when you ask. The grid is known after the answer.",
    "tiles.later":
      "This browser cannot show the picture as the model sees it. The grid is known after the answer.",
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
    "tiles.cut": "{width} × {height} → {columns} × {rows} 个图块",
    "tiles.whole": "{width} × {height} → 1 个图块",
    "tiles.plus": " + 缩略图",
    "tiles.product": " = {count} × {each}",
    "tiles.tokens": "{count} 个 token",
    "tiles.detail": "精细度",
    "tiles.auto": "自动",
    "tiles.low": "低",
    "tiles.high": "高",
    "tiles.cap": "图块上限",
    "tiles.capHow": "自动最多 {standard} 块，低为 1 块，高最多 {most} 块，缩略图另计。",
    "tiles.capOwn": "已自定上限 {cap} 块，优先于精细度设置。",
    "tiles.source": "最近一次回答",
    "tiles.llm": "LLM 服务仍保留着，无需编码或传输。",
    "tiles.vision_cache": "来自视觉服务的缓存，没有重新编码。",
    "tiles.encoded": "为这次回答重新编码。",
    "tiles.address": "提问时由网关获取这张图片，回答之后才能看到网格。",
    "tiles.later": "浏览器无法按模型所见显示这张图片，回答之后才能看到网格。",
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
export function gridWords({ column_count: columns, row_count: rows, tile_count: count }) {
  return `${columns}×${rows}${count > columns * rows ? "+1" : ""}`;
}

/** The panel beside the conversation, or over it on a small screen. */
export class TileView {
  #element;
  #picture = null;
  #options = {};
  #plan = null; // null if the picture's size is not known
  #limits = null; // of tiles, from any plan
  #problem = null; // why there is none
  #turn = 0;
  #timer = 0;
  #opener = null;
  #isModelView = false;
  #title = h("h2", { id: "tiles-title" });
  #meta = h("p", { class: "tiles-meta" });
  #views = choice("tiles-view", "tiles.views", { picture: "tiles.picture", model: "tiles.model" });
  #stage = new Stage();
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
    const head = h("div", { class: "tiles-head" }, h("div", {}, this.#title, this.#meta));
    head.append(this.#closeButton());
    const answers = [this.#facts, this.#note, this.#source];
    const body = [this.#views, this.#stage.element, h("div", {}, answers), this.#settings];
    element.replaceChildren(head, h("div", { class: "tiles-body" }, body));
    this.#listen();
  }

  /**
   * Shows a picture. Options: `model` and `key` of the question, `editable`, `onChange`, and `used`,
   * what the answer's timing told of a picture that was sent.
   */
  open(picture, options = {}) {
    if (!this.#element.open) this.#opener = document.activeElement;
    const isOther = picture !== this.#picture || !this.isOpen;
    this.#picture = picture;
    this.#options = options;
    this.#describe();
    if (isOther) this.#forget();
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
    WIDE.addEventListener("change", () => this.#reopen());
    document.addEventListener("languagechange", () => this.isOpen && this.#sayAll());
  }

  // A panel on a wide screen; elsewhere nothing beside it can be used.
  #show() {
    const element = this.#element;
    if (element.open) return;
    element.toggleAttribute("closedby", false);
    if (WIDE.matches) return element.show();
    element.setAttribute("closedby", "any"); // by a press beside it, too
    element.showModal();
  }

  #reopen() {
    if (!this.isOpen) return;
    this.close();
    // The event of the closing comes later, and would let go of the picture.
    setTimeout(() => this.open(this.#picture, this.#options));
  }

  #closed() {
    if (this.isOpen) return;
    this.#turn++;
    this.#stage.clear();
    if (this.#opener?.isConnected) this.#opener.focus();
  }

  /** Takes off the page what was said of the picture before, until this one's plan has come. */
  #forget() {
    this.#plan = this.#problem = null;
    this.#sayAll();
    this.#draw();
  }

  #describe() {
    const picture = this.#picture;
    const { used, editable } = this.#options;
    this.#stage.take(picture);
    this.#title.textContent = picture.name;
    this.#title.title = picture.name;
    this.#meta.textContent = fileWords(picture, used);
    this.#settings.hidden = !editable;
  }

  #change(values, wait) {
    // What an answer used was another choice's.
    const picture = Object.assign(this.#picture, values, { used: undefined });
    const { onChange } = this.#options;
    this.#sayChoice();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#tell(picture, onChange), wait);
  }

  #tell(picture, onChange) {
    onChange?.(picture);
    if (this.isOpen && picture === this.#picture) this.#update();
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
    return used?.column_count ? gridOf(used, this.#plan) : this.#plan;
  }

  #sayAll() {
    this.#sayChoice();
    this.#sayFacts();
    this.#sayNote();
    this.#saySource();
  }

  #saySource() {
    const { source } = this.#options.used ?? {};
    this.#source.hidden = !source;
    const name = h("strong", { words: "tiles.source" });
    const how = h("span", { words: `tiles.${source}` });
    this.#source.replaceChildren(...(source ? [name, " ", how] : []));
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
    if (!this.#grid && seen(this.#picture, used).width) return [null]; // It comes at once.
    if (!this.#grid && used) return ["tiles.unknown"];
    if (!this.#grid) return [this.#picture.kind === "url" ? "tiles.address" : "tiles.later"];
    return [this.#stage.isSeen || this.#picture.kind === "url" ? null : "tiles.unseen"];
  }

  #draw() {
    const { width, height } = seen(this.#picture, this.#options.used);
    const grid = this.#grid;
    const hasTiles = Boolean(this.#stage.isSeen && grid);
    this.#views.hidden = !hasTiles;
    if (!width) return;
    const edge = this.#plan?.tile_size ?? TILE_EDGE;
    if (this.#isModelView && hasTiles) this.#stage.drawTiles(grid, edge);
    else this.#stage.draw(width / height, grid);
  }
}

const labels = (names) => Object.fromEntries(names.map((name) => [name, `tiles.${name}`]));

/** Returns the grid of `used` as a plan has it, if there is one to tell the tokens of a tile. */
function gridOf({ column_count, row_count, has_thumbnail }, plan) {
  const tile_count = column_count * row_count + (has_thumbnail ? 1 : 0);
  const token_count = plan ? (plan.token_count / plan.tile_count) * tile_count : 0;
  return { column_count, row_count, tile_count, token_count };
}

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
  const product = count > 1 ? t("tiles.product", { count, each: number(tokens / count) }) : "";
  const sum = h("strong", {}, t("tiles.tokens", { count: number(tokens) }));
  return [first, " ", h("span", {}, `${product} = `.trimStart(), sum)];
}
