// The page: its parts put together, and the way of one question.

import * as api from "./api.js";
import { ask, picturesOf, said } from "./asking.js";
import { Composer } from "./composer.js";
import { ConversationView } from "./conversation.js";
import { Drawer } from "./drawer.js";
import {
  asCurl,
  asJSON,
  asPython,
  copyText,
  exportConversation,
  importConversation,
} from "./exports.js";
import { HistoryDrawer } from "./history.js";
import { KeyDialog } from "./key.js";
import { addWords, language, number, setLanguage, t } from "./language.js";
import { announce, menuButtons } from "./menu.js";
import { chatRequest, newOptions } from "./request.js";
import * as store from "./store.js";
import { Strip } from "./strip.js";
import { TileView } from "./tiles.js";

addWords({
  en: {
    "main.stopped": "Stopped.",
    "main.freed": "Stopped. The engine is free again.",
    "main.busy": "Stopped. The engine runs {running} requests of others.",
  },
  zh: {
    "main.stopped": "已停止。",
    "main.freed": "已停止，引擎已释放。",
    "main.busy": "已停止，引擎正在处理其他 {running} 个请求。",
  },
});

const STATUS_SECONDS = 4;
const BUSY_STATUS_SECONDS = 1;
const FREED_SECONDS = 1;
const TITLE_LENGTH = 60;

const at = (name) => document.getElementById(name);
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** An answer that was on its way when the page was closed. */
function lose(turn) {
  turn.state = "failed";
  turn.error = { status: 0, code: "connection_lost" };
}

/** All that the page has in its hands. */
class Page {
  #key = "";
  #needsKey = false; // the gateway has asked for a key, or for another one
  #model = "";
  #conversation = null;
  #stopping = null; // an AbortController while an answer comes
  #editing = null; // the turn that is being changed
  #removedIds = new Set(); // of conversations that are not to be kept

  constructor() {
    this.strip = new Strip(at("strip"));
    at("strip").append(menuButtons({
      fresh: () => this.#open(this.#fresh()),
      history: () => this.history.open(),
      settings: () => this.drawer.open(),
      copy: (form) => this.#copy(form),
      exported: () => this.#export(),
    }));
    this.keys = new KeyDialog(at("key"));
    this.inspector = new TileView(at("inspector"));
    this.drawer = new Drawer(at("settings"), { onChange: (options) => this.#setOptions(options) });
    this.history = new HistoryDrawer(at("history"), {
      open: async (id) => id === this.#conversation.id || this.#open(await store.load(id)),
      removed: (ids) => this.#removed(ids),
      importFile: (file) => this.#import(file),
    });
    this.view = new ConversationView(at("conversation"), {
      edit: (turn) => this.#edit(turn),
      again: (turn) => this.#again(turn),
      stop: () => this.#stopping?.abort(),
      inspect: (picture) => this.#inspect(picture),
      sample: () => this.#sample(),
    });
    this.composer = new Composer(at("composer"), {
      inspector: this.inspector,
      model: () => this.#model,
      key: () => this.#key,
    });
    this.composer.addEventListener("send", (event) => this.#send(event));
    this.composer.addEventListener("cancel", () => (this.#editing = null));
    store.storeProblems.addEventListener("problem", (event) => announce(event.detail));
    this.#open(this.#fresh());
    this.#watch();
  }

  #inspect(picture) {
    this.inspector.open(picture, { editable: false, used: picture.used, ...this.#server });
  }

  #fresh() {
    const options = this.#conversation?.options ?? newOptions();
    return { id: store.newId(), title: "", created: Date.now(), options, turns: [] };
  }

  #open(conversation) {
    if (!conversation) return;
    this.#halt();
    this.#editing = null;
    this.composer.endEdit();
    this.#conversation = { options: newOptions(), ...conversation };
    for (const turn of this.#conversation.turns) if (turn.state === "streaming") lose(turn);
    this.drawer.options = this.#conversation.options;
    this.view.show(this.#conversation.turns);
    this.strip.use(this.#usedCount());
    this.composer.question.focus();
  }

  #usedCount() {
    const usage = this.#conversation.turns.findLast((turn) => turn.facts?.usage)?.facts.usage;
    return usage ? usage.prompt_tokens + usage.completion_tokens : 0;
  }

  #removed(ids) {
    for (const id of ids) this.#removedIds.add(id);
    if (this.#removedIds.has(this.#conversation.id)) this.#open(this.#fresh());
  }

  #setOptions(options) {
    this.#conversation.options = options;
  }

  #send(event) {
    const problem = this.drawer.problem();
    if (problem) {
      event.preventDefault();
      return this.composer.showProblem(problem);
    }
    const { text, pictures } = event.detail;
    this.#cutFrom(this.#editing);
    this.#editing = null;
    const turn = { id: store.newId(), role: "user", text, pictures };
    this.#conversation.title ||= (text || pictures[0].name).slice(0, TITLE_LENGTH);
    this.#conversation.turns.push(turn);
    this.view.addQuestion(turn);
    this.#answer();
  }

  #cutFrom(turn) {
    const place = this.#conversation.turns.indexOf(turn);
    if (place < 0) return;
    this.#conversation.turns.length = place;
    this.view.show(this.#conversation.turns);
  }

  #edit(turn) {
    this.#halt();
    this.#editing = turn;
    this.composer.edit(turn);
  }

  #again(turn) {
    const problem = this.drawer.problem();
    if (problem) return this.composer.showProblem(problem);
    this.#halt();
    this.#cutFrom(turn);
    this.#answer();
  }

  async #sample() {
    const { composer } = this;
    const response = await fetch("/page/sample.webp").catch(() => null);
    if (!response?.ok) return composer.showProblem(t("api.unreachable"));
    const file = new File([await response.blob()], "sample.webp", { type: "image/webp" });
    composer.question.value ||= t("conversation.sampleQuestion");
    await composer.tray.add([file]);
    composer.question.focus();
  }

  /** Asks for the answer to the conversation so far, and shows it as it comes. */
  async #answer() {
    const conversation = this.#conversation;
    const question = { turns: said(conversation.turns), options: conversation.options, ...this.#server };
    const turn = { id: store.newId(), role: "assistant", text: "", state: "streaming" };
    conversation.turns.push(turn);
    const view = this.view.addAnswer(turn);
    this.view.toEnd();
    const stopping = this.#begin();
    this.#keep(conversation); // so that a question is not lost with the page
    try {
      await ask(question, turn, view, { signal: stopping.signal, stopped: () => this.#freed() });
    } finally {
      this.#end(stopping);
    }
    await this.#keep(conversation);
    if (conversation !== this.#conversation) return;
    this.strip.use(this.#usedCount());
    this.#refreshInspector(question.turns);
    this.#refresh();
    if (turn.error?.status === 401) this.#askKey(turn);
  }

  get #server() {
    return { model: this.#model, key: this.#key };
  }

  #begin() {
    this.composer.busy = true;
    return (this.#stopping = new AbortController());
  }

  #end(stopping) {
    if (this.#stopping !== stopping) return;
    this.#stopping = null;
    this.composer.busy = false;
  }

  /** Stops what comes, and goes on at once. */
  #halt() {
    this.#stopping?.abort();
    if (this.#stopping) this.#end(this.#stopping);
  }

  async #keep(conversation) {
    if (!this.#removedIds.has(conversation.id)) await store.save(conversation);
  }

  #refreshInspector(turns) {
    const { isOpen, picture } = this.inspector;
    if (isOpen && picturesOf(turns).includes(picture)) this.#inspect(picture);
  }

  /** Returns what became of the engine: the LLM service's load tells it, it is not supposed. */
  async #freed() {
    const deadline = performance.now() + 1000 * FREED_SECONDS;
    for (;;) {
      const { running_sequence_count: running, replica_count: count } =
        (await this.#refresh())?.llm ?? {};
      // Of several replicas any one has told it.
      if (running === undefined || count !== 1) return t("main.stopped");
      if (!running) return t("main.freed");
      if (performance.now() > deadline) return t("main.busy", { running: number(running) });
      await pause(0.1);
    }
  }

  /** Asks for a key until the gateway takes it, or none is given; then for the turn's answer. */
  async #askKey(turn = null) {
    if (this.keys.isOpen) return;
    do {
      this.#key = await this.keys.ask(Boolean(this.#key));
      if (!this.#key) return;
      this.#needsKey = false;
      await this.#refresh();
    } while (this.#needsKey);
    if (turn) this.#again(turn);
  }

  async #refresh() {
    if (this.#needsKey) return null; // it would only be refused
    const status = await api.status(this.#key).catch((error) => {
      this.#needsKey = error.status === 401;
      return null;
    });
    this.#model = status?.model ?? this.#model;
    document.title = this.#model ? `${this.#model} · InternVL` : "InternVL";
    this.strip.show(status, this.#needsKey);
    return status;
  }

  async #watch() {
    for (;;) {
      const isKnown = this.#needsKey;
      if (!document.hidden) await this.#refresh();
      if (this.#needsKey && !isKnown) await this.#askKey();
      await pause(this.#stopping ? BUSY_STATUS_SECONDS : STATUS_SECONDS);
    }
  }

  async #copy(form) {
    const turns = this.#conversation.turns;
    const last = turns.findLastIndex((turn) => turn.role === "user");
    if (last < 0) return announce(t("menu.nothing"));
    const problem = this.drawer.problem();
    if (problem) return announce(problem);
    try {
      const text = await this.#requestText(form, said(turns.slice(0, last + 1)));
      announce(t((await copyText(text)) ? "menu.copied" : "menu.notCopied"));
    } catch (error) {
      announce(error.message);
    }
  }

  async #requestText(form, asked) {
    const request = await chatRequest(asked, this.#conversation.options, this.#model);
    const writers = { curl: asCurl, python: asPython, json: asJSON };
    const names = picturesOf(asked).map(({ blob, name }) => (blob ? name : ""));
    return writers[form](request, location.origin, { names, hasKey: Boolean(this.#key) });
  }

  async #export() {
    if (!this.#conversation.turns.length) return announce(t("menu.nothing"));
    const file = await exportConversation(this.#conversation).catch((error) => announce(error.message));
    if (!file) return;
    const url = URL.createObjectURL(file);
    const link = Object.assign(document.createElement("a"), { href: url, download: "conversation.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  async #import(file) {
    try {
      const conversation = await importConversation(file);
      await store.save(conversation);
      this.#open(conversation);
    } catch (error) {
      this.composer.showProblem(error.message);
    }
  }
}

setLanguage(language());
new Page();
