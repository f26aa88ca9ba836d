// The tile view's drawing: a picture under its grid, or its tiles one by one, as the model gets them.

import { addWords, say, sayAnew } from "./language.js";
import { canvasOf, stretched } from "./previews.js";
import { h } from "./dom.js";

addWords({
  en: {
    "stage.sheet": "The picture under its grid: {columns} × {rows} tiles",
    "stage.cells":
      "{columns} × {rows} tiles, each {edge} × {edge} pixels, in the order in which the model reads them",
    "stage.thumbnail": "Thumbnail",
    "stage.thumbnailHow": "the whole picture in one tile",
  },
  zh: {
    "stage.sheet": "图片及其网格：{columns} × {rows} 个图块",
    "stage.cells": "{columns} × {rows} 个图块，每个 {edge} × {edge} 像素，按模型读取的顺序排列",
    "stage.thumbnail": "缩略图",
    "stage.thumbnailHow": "整张图片缩为一个图块",
  },
});

/**
 * What is drawn stays until something else is: nothing is taken off the page while a grid changes.
 * A grid is {column_count, row_count, tile_count}.
 */
export class Stage {
  element = h("div", { class: "tiles-stage" });
  #blob = null;
  #url = "";
  #paper = h("div", { class: "tiles-sheet" });
  #thumbnail = figure(h("div"));
  #drawn = "";

  /** Takes another picture; where the browser cannot show it, there is a plain sheet instead. */
  take({ blob, width }) {
    if (this.#url && blob === this.#blob) return;
    this.clear();
    this.#blob = width ? blob : null;
    this.#url = this.#blob ? URL.createObjectURL(blob) : "";
    this.#paper = h("div", { class: "tiles-sheet" }, this.#image());
    this.#thumbnail = figure(this.#image() ?? h("div", { class: "tiles-blank" }));
  }

  /** Whether there is more than a plain sheet. */
  get isSeen() {
    return Boolean(this.#url);
  }

  clear() {
    URL.revokeObjectURL(this.#url);
    this.#url = this.#drawn = "";
    this.element.replaceChildren();
  }

  /** Draws the picture, of this width by height, under its grid, or without if that is null. */
  draw(ratio, grid) {
    this.#drawn = "sheet";
    this.#paper.style.setProperty("--ratio", ratio);
    this.#paper.querySelectorAll(".tiles-lines, .tiles-numbers").forEach((old) => old.remove());
    if (grid) this.#drawGrid(grid);
    this.#put(this.#paper, hasThumbnail(grid) && this.#thumbnail);
  }

  #drawGrid({ column_count: columns, row_count: rows }) {
    this.#paper.append(lines(columns, rows), numbers(columns, rows));
    this.#paper.setAttribute("role", "img");
    say(this.#paper, "stage.sheet", { columns, rows }, "aria-label");
  }

  /** Draws the tiles, each with that edge in pixels. */
  async drawTiles(grid, edge) {
    const { column_count: columns, row_count: rows } = grid;
    const drawing = `${columns} ${rows}`;
    if (this.#drawn === drawing) return;
    this.#drawn = drawing;
    const [blob, thumbnail] = [this.#blob, hasThumbnail(grid) && this.#thumbnail];
    const whole = await stretched(blob, columns * edge, rows * edge);
    if (blob !== this.#blob || this.#drawn !== drawing || !whole) return whole?.close();
    this.#put(cells(whole, columns, rows, edge), thumbnail);
    whole.close();
  }

  #put(...elements) {
    const wanted = elements.filter(Boolean);
    const { children } = this.element;
    if (wanted.length === children.length && wanted.every((one, i) => one === children[i])) return;
    wanted.forEach(sayAnew);
    this.element.replaceChildren(...wanted);
  }

  #image() {
    if (!this.#url) return null;
    return h("img", { src: this.#url, alt: "", decoding: "async", draggable: "false" });
  }
}

const hasThumbnail = (grid) =>
  Boolean(grid && grid.tile_count > grid.column_count * grid.row_count);

function lines(columns, rows) {
  const svg = drawing("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none" });
  svg.setAttribute("class", "tiles-lines");
  svg.setAttribute("aria-hidden", "true");
  const d = [
    `M0 0H${columns}V${rows}H0Z`,
    ...Array.from({ length: columns - 1 }, (_, i) => `M${i + 1} 0V${rows}`),
    ...Array.from({ length: rows - 1 }, (_, i) => `M0 ${i + 1}H${columns}`),
  ].join("");
  svg.append(
    drawing("path", { class: "tiles-halo", d }),
    drawing("path", { class: "tiles-line", d }),
  );
  return svg;
}

function drawing(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const numberOf = (i) => h("b", {}, `${i + 1}`);

function numbers(columns, rows) {
  const cells = Array.from({ length: columns * rows }, (_, i) => h("span", {}, numberOf(i)));
  const grid = h("div", { class: "tiles-numbers", "aria-hidden": "true" }, cells);
  grid.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
  return grid;
}

function cells(whole, columns, rows, edge) {
  const grid = h("div", { class: "tiles-cells", role: "img" });
  say(grid, "stage.cells", { columns, rows, edge }, "aria-label");
  grid.style.setProperty("--columns", columns);
  grid.style.setProperty("--rows", rows);
  for (let i = 0; i < columns * rows; i++) {
    const area = [(i % columns) * edge, Math.floor(i / columns) * edge, edge, edge];
    grid.append(h("span", {}, canvasOf(whole, area), numberOf(i)));
  }
  return grid;
}

function figure(content) {
  const words = ["stage.thumbnail", "stage.thumbnailHow"];
  const [name, how] = words.map((key, i) => h(i ? "span" : "strong", { words: key }));
  return h("figure", { class: "tiles-thumbnail" }, content, h("figcaption", {}, name, how));
}
