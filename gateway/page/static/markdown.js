// A model's Markdown as elements, as it comes. Its words are untrusted: whatever HTML they hold
// stays text, and what Markdown makes of them passes DOMPurify.

import { h } from "./dom.js";
import { copyText } from "./exports.js";
import { addWords, say } from "./language.js";
import { Lexer, Marked, Tokenizer } from "./libraries/marked.esm.js";
import "./libraries/purify.min.js";

addWords({
  en: {
    "markdown.copy": "Copy",
    "markdown.copied": "Copied",
    "markdown.refused": "Select and copy it",
    "markdown.code": "Code",
    "markdown.codeIn": "Code, {language}",
    "markdown.table": "Table",
  },
  zh: {
    "markdown.copy": "复制",
    "markdown.copied": "已复制",
    "markdown.refused": "请选中后复制",
    "markdown.code": "代码",
    "markdown.codeIn": "代码，{language}",
    "markdown.table": "表格",
  },
});

const escaped = (text) =>
  text.replace(/[&<>"']/g, (character) => `&#${character.codePointAt(0)};`);

const DONE = "☑";
const TO_DO = "☐";

// A heading of an answer stands below its turn's.
const HEADING_OF_TURN = 2;

const MAX_DEPTH = 32;
let depth = 0;

/** A model that goes on saying "> " or "1. " would nest blocks until the stack is full. */
function shallow(method) {
  return function (source) {
    if (depth === MAX_DEPTH) return undefined; // it is text
    depth += 1;
    try {
      return Tokenizer.prototype[method].call(this, source);
    } finally {
      depth -= 1;
    }
  };
}

const marked = new Marked({
  gfm: true,
  breaks: true, // a model that reads a sign or a form writes its lines as lines
  tokenizer: {
    ...{ html: () => undefined, tag: () => undefined },
    ...{ blockquote: shallow("blockquote"), list: shallow("list") },
  },
  renderer: {
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + HEADING_OF_TURN);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
    code({ text, lang }) {
      const language = (lang ?? "").match(/^\S*/)[0];
      return `<pre data-language="${escaped(language)}"><code>${escaped(text)}</code></pre>\n`;
    },
    image({ href, text }) {
      return `<a href="${escaped(href)}">${escaped(text || href)}</a>`;
    },
    checkbox: ({ checked }) => (checked ? `${DONE} ` : `${TO_DO} `),
  },
});

const purify = globalThis.DOMPurify(window);
const ATTRIBUTES = ["align", "data-language", "href", "start", "title"];
const RULES = {
  ALLOWED_TAGS: [
    ...["a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol"],
    ...["p", "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ],
  ALLOWED_ATTR: ATTRIBUTES,
  ADD_URI_SAFE_ATTR: ATTRIBUTES.filter((name) => name !== "href"),
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

function fragmentOf(tokens) {
  const fragment = purify.sanitize(marked.parser(tokens), RULES);
  fragment.querySelectorAll("a").forEach(guardLink);
  fragment.querySelectorAll("pre").forEach(upgradeCode);
  fragment.querySelectorAll("table").forEach(upgradeTable);
  fragment.querySelectorAll("li").forEach(markTask);
  return fragment;
}

function guardLink(link) {
  if (!link.hasAttribute("href")) link.replaceWith(...link.childNodes);
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
}

function upgradeCode(pre) {
  const block = new CodeBlock(pre.dataset.language);
  block.add(pre.textContent.split("\n"));
  pre.replaceWith(block.element);
}

function markTask(item) {
  const mark = item.textContent.trimStart()[0];
  if (mark === DONE || mark === TO_DO) item.classList.add("answer-task");
}

function upgradeTable(table) {
  const role = { role: "group", tabindex: "0", label: "markdown.table" };
  const frame = h("div", { class: "answer-table", ...role });
  table.replaceWith(frame);
  frame.append(table);
}

/** Lets no heading go more than one level below the one before it; returns the last one's level. */
function orderHeadings(fragment, level) {
  for (const heading of fragment.querySelectorAll("h3, h4, h5, h6")) {
    level = Math.min(Number(heading.localName[1]), level + 1);
    const ordered = h(`h${level}`);
    ordered.append(...heading.childNodes);
    heading.replaceWith(ordered);
  }
  return level;
}

/** A button that copies what `text()` returns, and says that it did. */
export function copyButton(text, words = "markdown.copy") {
  const button = h("button", { type: "button", class: "answer-copy", words });
  let timer;
  button.addEventListener("click", async () => {
    clearTimeout(timer);
    say(button, (await copyText(text())) ? "markdown.copied" : "markdown.refused");
    timer = setTimeout(() => say(button, words), 1600);
  });
  return button;
}

const LINES_OF_CHUNK = 100;

/** Code that lines are added to: many of them cost no more than a few. */
export class CodeBlock {
  #lines = [];
  #code = h("code");
  #chunk = null;
  #chunkLines = [];
  #tail = h("span", { class: "answer-code-chunk" });

  constructor(language = "", { hasCopy = true } = {}) {
    const label = language ? ["markdown.codeIn", { language }] : "markdown.code";
    const name = language ? { class: "answer-code-language" } : { words: "markdown.code" };
    const title = h("span", name, language || null);
    const copy = hasCopy ? copyButton(() => this.text) : null;
    const head = h("div", { class: "answer-code-head" }, title, copy);
    const pre = h("pre", { tabindex: "0", role: "group", label }, this.#code);
    this.element = h("div", { class: "answer-code" }, head, pre);
  }

  get text() {
    return this.#lines.join("\n");
  }

  /** Adds whole lines. */
  add(lines) {
    for (let i = 0; i < lines.length; ) {
      if (!this.#chunk || this.#chunkLines.length === LINES_OF_CHUNK) this.#newChunk();
      const taken = lines.slice(i, i + LINES_OF_CHUNK - this.#chunkLines.length);
      this.#chunkLines.push(...taken);
      this.#chunk.textContent = shown(this.#chunkLines);
      i += taken.length;
    }
    for (const line of lines) this.#lines.push(line);
  }

  /** Shows the beginning of a line that is still being written. */
  showTail(text) {
    this.#tail.textContent = text;
    if (text) this.#code.append(this.#tail);
    else this.#tail.remove();
  }

  #newChunk() {
    this.#chunk = h("span", { class: "answer-code-chunk" });
    this.#chunkLines = [];
    this.#tail.remove();
    this.#code.append(this.#chunk);
  }
}

// A chunk is a block: the break after its last line is the block's own, unless that line is empty.
const shown = (lines) => lines.join("\n") + (lines.at(-1) === "" ? "\n" : "");

const OPENING = /^( {0,3})(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*\n/;

/** A fence that is open: its code goes into a block line by line, and is never read again. */
class Fence {
  constructor([, indent, marks, language]) {
    this.block = new CodeBlock(language);
    this.indent = new RegExp(`^ {0,${indent.length}}`);
    this.closing = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}[ \\t]*$`);
    this.beginning = new RegExp(`^ {0,3}${marks[0]}*[ \\t]*$`);
  }

  /** Takes what it can of the text, and returns the rest, and whether the fence has been closed. */
  read(text) {
    const lines = text.split("\n");
    const end = lines.slice(0, -1).findIndex((line) => this.closing.test(line));
    const code = lines.slice(0, end < 0 ? -1 : end);
    this.block.add(code.map((line) => line.replace(this.indent, "")));
    const rest = end < 0 ? lines.at(-1) : lines.slice(end + 1).join("\n");
    this.block.showTail(end < 0 && !this.beginning.test(rest) ? rest : "");
    return { rest, isClosed: end >= 0 };
  }

  /** Ends it where the text ends. */
  end(rest) {
    this.block.showTail("");
    if (rest && !this.closing.test(rest)) this.block.add([rest.replace(this.indent, "")]);
  }
}

const grouped = (nodes, isEnd) => {
  const groups = [[]];
  for (const node of nodes) {
    groups.at(-1).push(node);
    if (isEnd(node)) groups.push([]);
  }
  return groups;
};

const rawOf = (tokens) => tokens.map(({ raw }) => raw).join("");

// How blocks of many units (items, rows, lines) are taken apart: when that begins, how many units
// at the end may still change, what must stand before the others so that they are read as such
// units, where their nodes go, and which source and nodes belong to each.
const UNITS = {
  list: {
    isLong: ({ items }) => items.length > 4,
    open: 1,
    head: () => "",
    place: (block) => block,
    sources: ({ items }) => items.map(({ raw }) => raw),
    nodes: (place) => [...place.children].map((item) => [item]),
  },
  table: {
    isLong: ({ rows }) => rows.length > 4,
    open: 1,
    head: ({ raw }) => `${raw.split("\n", 2).join("\n")}\n`,
    place: (block) => block.querySelector("tbody"),
    sources: ({ raw, rows }) => raw.split("\n").slice(2, rows.length + 2).map((row) => `${row}\n`),
    nodes: (place) => [...place.children].map((row) => [row]),
  },
  paragraph: {
    isLong: ({ raw }) => raw.split("\n").length > 24,
    open: 12,
    head: () => ".\n",
    place: (block) => block,
    sources: ({ tokens }) => grouped(tokens, ({ type }) => type === "br").slice(1).map(rawOf),
    nodes: (place) => grouped(place.childNodes, ({ nodeName }) => nodeName === "BR").slice(1),
  },
};

/** A long list, table or paragraph that grows: the units that are complete are made once. */
class Growing {
  #rules;
  #place;
  #open = [];

  static suits(token) {
    return Boolean(UNITS[token?.type]?.isLong(token));
  }

  constructor(token) {
    this.type = token.type;
    this.#rules = UNITS[token.type];
    this.head = this.#rules.head(token);
    this.block = fragmentOf([token]).firstElementChild;
    this.#place = this.#rules.place(this.block);
    this.#place.replaceChildren();
  }

  /** Takes its token, read after `head`; returns the length of the source that is done with. */
  take(token, isComplete) {
    this.drop();
    const nodes = this.#rules.nodes(this.#rules.place(fragmentOf([token]).firstElementChild));
    const sources = this.#rules.sources(token);
    const done = isComplete ? nodes.length : Math.max(0, nodes.length - this.#rules.open);
    this.#open = nodes.slice(done).flat();
    this.#place.append(...nodes.flat());
    if (isComplete) return token.raw.length - this.head.length;
    return sources.slice(0, done).join("").length;
  }

  /** Takes back the units that are not complete. */
  drop() {
    this.#open.forEach((node) => node.remove());
  }
}

/**
 * Markdown in an element, that grows.
 *
 * Blocks that are complete are made once and stay. Only what may still change, the end of the last
 * block, is made anew, at most once a frame, and less often when that takes long.
 */
export class Markdown {
  #rest = "";
  #links = {};
  #level = HEADING_OF_TURN; // of the last heading
  #last = [];
  #fence = null;
  #growing = null;
  #isPlain = false;
  #frame = 0;
  #notBefore = 0;

  constructor(element) {
    this.element = element;
  }

  append(text) {
    this.#rest += text.replaceAll("\r", "");
    this.#frame ||= requestAnimationFrame(() => this.#onFrame());
  }

  /** Shows all that there is, now. */
  finish() {
    cancelAnimationFrame(this.#frame);
    this.#render();
    this.#fence?.end(this.#rest);
    this.#fence = null;
    this.#growing = null;
    this.#rest = "";
  }

  #onFrame() {
    this.#frame = 0;
    const begun = performance.now();
    if (begun < this.#notBefore) return this.append("");
    this.#render();
    this.#notBefore = Infinity;
    // Runs once the frame has been laid out, which is a part of what a change costs.
    setTimeout(() => (this.#notBefore = performance.now() + 4 * (performance.now() - begun)));
  }

  #render() {
    try {
      while (!this.#isPlain && this.#advance());
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#isPlain = true; // nested deeper than the stack: the rest stands as it was written
    }
    if (this.#isPlain) this.#showPlain();
  }

  #showPlain() {
    this.#last.forEach((node) => node.remove());
    this.#last = [h("p", {}, this.#rest)];
    this.element.append(...this.#last);
  }

  /** Shows what it can; returns whether there is more to read, of another kind. */
  #advance() {
    if (this.#fence) return this.#readFence();
    if (this.#growing) return this.#grow();
    const tokens = this.#lex(this.#rest);
    const complete = completeCount(tokens);
    this.#show(tokens.slice(0, complete), true);
    const opening = OPENING.exec(this.#rest);
    if (opening) return this.#openFence(opening);
    const last = tokens.slice(complete);
    if (Growing.suits(last[0])) return this.#beginToGrow(last[0]);
    this.#show(last, false);
    return false;
  }

  #lex(text) {
    const lexer = new Lexer(marked.defaults);
    Object.assign(lexer.tokens.links, this.#links);
    return lexer.lex(text);
  }

  #show(tokens, isComplete) {
    this.#last.forEach((node) => node.remove());
    const fragment = fragmentOf(tokens);
    const level = orderHeadings(fragment, this.#level);
    this.#last = isComplete ? [] : [...fragment.childNodes];
    this.element.append(fragment);
    if (!isComplete) return;
    this.#level = level;
    this.#keep(tokens);
  }

  #keep(tokens) {
    this.#rest = this.#rest.slice(rawOf(tokens).length);
    for (const { type, tag, href, title } of tokens) {
      if (type === "def") this.#links[tag] ??= { href, title };
    }
  }

  #openFence(opening) {
    this.#fence = new Fence(opening);
    this.#rest = this.#rest.slice(opening[0].length);
    this.element.append(this.#fence.block.element);
    return true;
  }

  #readFence() {
    const { rest, isClosed } = this.#fence.read(this.#rest);
    this.#rest = rest;
    if (isClosed) this.#fence = null;
    return isClosed;
  }

  #beginToGrow(token) {
    this.#growing = new Growing(token);
    if (token.type === "table") this.#rest = this.#rest.slice(this.#growing.head.length);
    this.element.append(this.#growing.block);
    return true;
  }

  #grow() {
    const tokens = this.#lex(this.#growing.head + this.#rest);
    const isComplete = completeCount(tokens) > 0;
    if (tokens[0]?.type === this.#growing.type) {
      this.#rest = this.#rest.slice(this.#growing.take(tokens[0], isComplete));
      if (!isComplete) return false;
    } else this.#growing.drop();
    this.#growing = null;
    return true;
  }
}

/** Returns how many tokens at the beginning no further text can change. */
function completeCount(tokens) {
  const solid = [...tokens.keys()].filter((index) => tokens[index].type !== "space");
  const last = solid.at(-1);
  // The first line of a block may still turn out to go on with the one before: "2" becomes "2. b".
  const isSure = last !== undefined && tokens[last].raw.includes("\n");
  return isSure ? last : (solid.at(-2) ?? 0);
}
