// An answer: its text as it comes, and below it what it took.

import { h } from "./dom.js";
import { factsOf } from "./facts.js";
import { addWords, number, t } from "./language.js";
import { CodeBlock, Markdown, copyButton } from "./markdown.js";

addWords({
  en: {
    "answer.name": "Answer",
    "answer.waiting": "Waiting for the first token",
    "answer.stop": "Stop",
    "answer.again": "Ask again",
    "answer.copy": "Copy",
    "answer.json": "Copy JSON",
    "answer.tool": "Tool call",
    "answer.begun": "The answer begins.",
    "answer.complete": "The answer is complete: {count} tokens.",
    "answer.stopped": "Stopped.",
    "answer.cut": "Cut at the token limit. Raise “Most output tokens”, or ask it to go on.",
    "answer.empty": "The model said nothing.",
    "answer.error.400": "The request was refused.",
    "answer.error.401": "The gateway asks for a key. Enter it, then ask again.",
    "answer.error.403": "This may not be read.",
    "answer.error.404": "There is no such model or address.",
    "answer.error.413": "The request is too large. Send fewer or smaller pictures.",
    "answer.error.429": "Too many ask at once. Try again in a moment.",
    "answer.error.429.after": "Too many ask at once. Try again in {seconds} s.",
    "answer.error.503": "A service is not ready. Try again in a moment.",
    "answer.error.503.after": "A service is not ready. Try again in {seconds} s.",
    "answer.error.504": "It took too long. Ask again, or ask for less.",
    "answer.error.500": "Something failed on the server. Ask again; its log says more.",
    "answer.error.page": "The question was not sent.",
    "answer.error.connection_lost": "The connection was lost. Nothing is resumed: ask again.",
    "answer.error.unreachable": "The gateway cannot be reached. Does it run? Then ask again.",
  },
  zh: {
    "answer.name": "回答",
    "answer.waiting": "等待首个 token",
    "answer.stop": "停止",
    "answer.again": "重新提问",
    "answer.copy": "复制",
    "answer.json": "复制 JSON",
    "answer.tool": "工具调用",
    "answer.begun": "开始回答。",
    "answer.complete": "回答完毕，共 {count} 个 token。",
    "answer.stopped": "已停止。",
    "answer.cut": "已达到 token 上限而截断。可调高“最多输出 token 数”，或让它继续。",
    "answer.empty": "模型没有输出内容。",
    "answer.error.400": "请求被拒绝。",
    "answer.error.401": "网关需要密钥。请输入密钥后重新提问。",
    "answer.error.403": "无权读取该内容。",
    "answer.error.404": "模型或地址不存在。",
    "answer.error.413": "请求过大，请减少图片或换用更小的图片。",
    "answer.error.429": "当前请求过多，请稍后重试。",
    "answer.error.429.after": "当前请求过多，请在 {seconds} 秒后重试。",
    "answer.error.503": "服务尚未就绪，请稍后重试。",
    "answer.error.503.after": "服务尚未就绪，请在 {seconds} 秒后重试。",
    "answer.error.504": "处理超时。请重新提问，或缩小问题范围。",
    "answer.error.500": "服务器内部出错。请重新提问，详情见服务器日志。",
    "answer.error.page": "问题未能发送。",
    "answer.error.connection_lost": "连接已断开，回答不会续传，请重新提问。",
    "answer.error.unreachable": "无法连接网关。请确认它仍在运行，然后重新提问。",
  },
});

/**
 * One answer of a conversation.
 *
 * begin(), then append() and callTools() as it comes, and one of finish(), fail() and stopped().
 * Buttons are there for the handlers that are given: onStop, onAgain.
 */
export class AnswerView {
  #body = h("div", { class: "answer-body" });
  #notes = h("div", { class: "answer-notes" });
  #facts = h("div", { class: "answer-facts-place" });
  #actions = h("div", { class: "answer-actions" });
  #spoken = h("p", { class: "answer-unseen", role: "status" });
  #handlers;
  #text = null;
  #tools = null;

  /** What is known of it once it has ended, to be kept in its turn. */
  facts = {};

  constructor(handlers = {}) {
    this.#handlers = handlers;
    const parts = [this.#body, this.#notes, this.#facts, this.#actions, this.#spoken];
    this.element = h("article", { class: "answer", label: "answer.name" }, parts);
  }

  /** Shows an answer that was kept: a turn of a stored conversation. */
  static of(turn, handlers = {}) {
    const view = new AnswerView(handlers);
    view.#start(turn.facts?.json);
    view.append(turn.text ?? "");
    view.callTools(turn.facts?.toolCalls ?? []);
    view.#settle(turn.facts ?? {});
    if (turn.error) view.#showError(turn.error);
    if (turn.state === "stopped") view.#note("answer.stopped");
    return view;
  }

  /** The text so far, as the model wrote it. */
  get text() {
    return this.#text?.text ?? "";
  }

  /** The calls of tools so far: [{name, arguments}]. */
  get toolCalls() {
    return this.#tools?.calls ?? [];
  }

  /** `json`: the answer was asked for as JSON, and is shown as such. */
  begin({ json = false } = {}) {
    this.#start(json);
    this.element.setAttribute("aria-busy", "true");
    this.#body.append(h("p", { class: "answer-waiting", words: "answer.waiting" }));
    const stop = this.#button("answer.stop", this.#handlers.onStop);
    this.#actions.replaceChildren(...[stop].filter(Boolean));
  }

  append(text) {
    if (!text) return;
    this.#hear();
    this.#text.append(text);
  }

  /** Takes a piece of `delta.tool_calls`. */
  callTools(deltas) {
    if (!deltas.length) return;
    this.#hear();
    this.#tools.add(deltas);
    if (!this.#tools.element.isConnected) this.#body.after(this.#tools.element);
  }

  /**
   * Ends it. The facts: {finishReason, usage, timing: {stages, images}, ttftMs, totalMs, pictures},
   * where the pictures are all of the request, each with its `plan` (see tiles.js) if it has one.
   */
  finish(facts = {}) {
    this.#settle(facts);
    const count = facts.usage?.completion_tokens;
    if (count !== undefined) this.#say("answer.complete", { count: number(count) });
  }

  /** Ends it with an APIError, or one that was kept. What has come stays. */
  fail(error, facts = {}) {
    this.#settle(facts);
    this.#say(...this.#showError(error));
  }

  /** Ends it because the user did, with a sentence of what that means. */
  stopped(sentence = null, facts = {}) {
    this.#settle(facts);
    this.#note("answer.stopped", sentence);
    this.#spoken.textContent = sentence ?? t("answer.stopped");
  }

  #start(json) {
    this.#body.replaceChildren();
    this.#notes.replaceChildren();
    this.#facts.replaceChildren();
    this.#tools?.element.remove();
    this.#tools = new ToolCalls();
    this.#text = json ? new JSONText(this.#body) : new MarkdownText(this.#body);
  }

  #hear() {
    const waiting = this.#body.querySelector(":scope > .answer-waiting");
    if (!waiting) return;
    waiting.remove();
    this.#say("answer.begun");
  }

  #settle(facts) {
    this.#body.querySelector(":scope > .answer-waiting")?.remove();
    this.#text.finish();
    this.element.removeAttribute("aria-busy");
    this.facts = this.#kept(facts);
    if (facts.finishReason === "length") this.#note("answer.cut");
    const isSilent = facts.finishReason === "stop" && !this.text && !this.toolCalls.length;
    if (isSilent) this.#note("answer.empty");
    this.#facts.replaceChildren(...factsOf(facts));
    this.#offer();
  }

  #kept({ pictures = [], ...facts }) {
    const slim = pictures.map(({ name, plan, used }) => ({ name, plan, used }));
    return { ...facts, pictures: slim, json: this.#text.isJSON, toolCalls: this.toolCalls };
  }

  /** Puts the buttons of a settled answer into the place of Stop; the focus goes along. */
  #offer() {
    const hadFocus = this.#actions.contains(document.activeElement);
    const words = this.#text.isJSON ? "answer.json" : "answer.copy";
    const copy = copyButton(() => this.#text.copied, words);
    const again = this.#button("answer.again", this.#handlers.onAgain);
    const shown = [this.text ? copy : null, again].filter(Boolean);
    this.#actions.replaceChildren(...shown);
    if (hadFocus) (again ?? shown[0])?.focus();
  }

  #button(words, handler) {
    if (!handler) return null;
    const on = { click: () => handler(this) };
    return h("button", { type: "button", class: "answer-action", words, on });
  }

  #note(words, sentence = null) {
    const properties = { class: "answer-note", words: sentence ? null : words };
    this.#notes.append(h("p", properties, sentence));
  }

  #showError(error) {
    const [key, values, detail] = explained(error);
    const sentence = h("p", { words: [key, values] });
    const parts = [sentence, detail ? h("p", { class: "answer-error-detail" }, detail) : null];
    this.#notes.append(h("div", { class: "answer-error" }, parts));
    return [key, values];
  }

  #say(key, values = {}) {
    this.#spoken.textContent = t(key, values);
  }
}

class MarkdownText {
  text = "";
  isJSON = false;

  constructor(element) {
    this.markdown = new Markdown(h("div", { class: "answer-text" }));
    element.append(this.markdown.element);
  }

  get copied() {
    return this.text;
  }

  append(text) {
    this.text += text;
    this.markdown.append(text);
  }

  finish() {
    this.markdown.finish();
  }
}

/** JSON, set out as it comes. What turns out to be none is shown as it is. */
class JSONText {
  text = "";
  isJSON = true;
  #place = h("div", { class: "answer-json" });
  #lines = new JSONLines();
  #rest = "";
  #frame = 0;
  #block = null;

  constructor(element) {
    element.append(this.#place);
  }

  get copied() {
    return setOut(this.text);
  }

  append(text) {
    this.text += text;
    this.#rest += this.#lines.push(text);
    this.#frame ||= requestAnimationFrame(() => this.#show());
  }

  finish() {
    cancelAnimationFrame(this.#frame);
    if (this.text) this.#begin().add(this.copied.split("\n"));
  }

  #begin() {
    this.#block = new CodeBlock("JSON", { hasCopy: false });
    this.#place.replaceChildren(this.#block.element);
    return this.#block;
  }

  #show() {
    this.#frame = 0;
    const block = this.#block ?? this.#begin();
    const lines = this.#rest.split("\n");
    this.#rest = lines.pop();
    block.add(lines);
    block.showTail(this.#rest);
  }
}

// A model that goes on opening brackets would make text that grows with the square of them.
const MAX_INDENT = 32;

/** Sets JSON out on lines as it comes: {"a":[1]} on five. Numbers stay as they were written. */
class JSONLines {
  #depth = 0;
  #isEmpty = false; // an object or array has begun, and nothing has come of it yet
  #string = "";

  push(text) {
    return Array.from(text, (character) => this.#place(character)).join("");
  }

  #place(character) {
    if (this.#string) return this.#inString(character);
    if (/\s/.test(character)) return "";
    if ("}]".includes(character)) return this.#close(character);
    const before = this.#isEmpty ? this.#line() : "";
    this.#isEmpty = false;
    return before + this.#open(character);
  }

  #inString(character) {
    if (this.#string === "\\") this.#string = '"';
    else if (character === "\\") this.#string = "\\";
    else if (character === '"') this.#string = "";
    return character;
  }

  #close(character) {
    this.#depth = Math.max(0, this.#depth - 1);
    const before = this.#isEmpty ? "" : this.#line();
    this.#isEmpty = false;
    return before + character;
  }

  #open(character) {
    if (character === ",") return character + this.#line();
    if (character === ":") return ": ";
    if (character === '"') this.#string = character;
    if ("{[".includes(character)) {
      this.#depth += 1;
      this.#isEmpty = true;
    }
    return character;
  }

  #line() {
    return `\n${"  ".repeat(Math.min(this.#depth, MAX_INDENT))}`;
  }
}

/** Returns JSON set out on lines; text that is no JSON as it is. */
function setOut(text) {
  try {
    JSON.parse(text);
    return new JSONLines().push(text);
  } catch {
    return text;
  }
}

const MAX_CALL_COUNT = 128;

class ToolCalls {
  calls = [];
  element = h("div", { class: "answer-tools" });
  #blocks = [];

  add(deltas) {
    for (const { index = this.calls.length, ...delta } of deltas) {
      if (!Number.isInteger(index) || index < 0 || index >= MAX_CALL_COUNT) continue;
      const call = (this.calls[index] ??= { name: "", arguments: "" });
      call.name += delta.function?.name ?? delta.name ?? "";
      call.arguments += delta.function?.arguments ?? delta.arguments ?? "";
      this.#show(index, call);
    }
  }

  #show(index, call) {
    const block = new CodeBlock(call.name);
    block.add(setOut(call.arguments).split("\n"));
    const title = h("p", { class: "answer-tool-title", words: "answer.tool" });
    const shown = h("div", { class: "answer-tool" }, title, block.element);
    if (this.#blocks[index]) this.#blocks[index].replaceWith(shown);
    else this.element.append(shown);
    this.#blocks[index] = shown;
  }
}

const LOST = ["connection_lost", "unreachable"];
const TOLD_APART = [400, 401, 403, 404, 413, 429, 503, 504];

/** Returns an error's sentence, as a key of words and its values, and what the gateway said. */
function explained(error) {
  const { message = String(error), status = 0, code = null, retryAfter = null } = error;
  if (!status && LOST.includes(code)) return [`answer.error.${code}`, {}, null];
  if (!status && code === "page") return ["answer.error.page", {}, message];
  const known = TOLD_APART.includes(status) ? status : status >= 500 || !status ? 500 : 400;
  const isTimed = retryAfter > 0 && (known === 429 || known === 503);
  const seconds = Math.ceil(retryAfter ?? 0);
  return [`answer.error.${known}${isTimed ? ".after" : ""}`, { seconds }, message];
}
