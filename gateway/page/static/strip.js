// The strip at the top: the model, how much of its context is used, the replicas and their load.

import { h } from "./dom.js";
import { addWords, duration, number, say } from "./language.js";

addWords({
  en: {
    "strip.context": "Context used: {used} of {all} tokens",
    "strip.vision": "Vision",
    "strip.llm": "LLM",
    "strip.replicas": "{count} replicas",
    "strip.replica": "1 replica",
    "strip.idle": "idle",
    "strip.tiles": "{count} tiles waiting",
    "strip.running": "{count} running",
    "strip.waiting": "{count} running, {waiting} waiting",
    "strip.wait": "wait {time}",
    "strip.silent": "no answer",
    "strip.one": "the load of one of them",
    "strip.memory": "{percent} % of the KV cache in use",
    "strip.lost": "The gateway does not answer.",
    "strip.shut": "The gateway asks for a key.",
    "strip.noModel": "no model",
  },
  zh: {
    "strip.context": "已用上下文：{used} / {all} 个 token",
    "strip.vision": "视觉",
    "strip.llm": "LLM",
    "strip.replicas": "{count} 个副本",
    "strip.replica": "1 个副本",
    "strip.idle": "空闲",
    "strip.tiles": "{count} 个图块等待中",
    "strip.running": "{count} 个运行中",
    "strip.waiting": "{count} 个运行中，{waiting} 个等待中",
    "strip.wait": "需等待 {time}",
    "strip.silent": "没有响应",
    "strip.one": "其中一个副本的负载",
    "strip.memory": "KV 缓存已用 {percent} %",
    "strip.lost": "网关没有响应。",
    "strip.shut": "网关需要密钥。",
    "strip.noModel": "没有模型",
  },
});

/** Shows the server's state; fills the header's element and leaves room for its buttons. */
export class Strip {
  #model = h("span", { class: "strip-model" });
  #meter = h("progress", { class: "strip-meter", max: 1, value: 0 });
  #context = h("span", { class: "strip-context" });
  #vision = h("span", { class: "strip-load" });
  #llm = h("span", { class: "strip-load" });
  #usedCount = 0;
  #status = null;
  #lack = "strip.lost";

  constructor(element) {
    const mark = h("img", { class: "strip-mark", src: "/page/icon.svg", alt: "", width: 26, height: 26 });
    this.#meter.hidden = true;
    element.append(
      h("h1", { class: "strip-name" }, mark, this.#model),
      h("div", { class: "strip-facts" },
        h("span", { class: "strip-use" }, this.#meter, this.#context), this.#vision, this.#llm),
    );
    document.addEventListener("languagechange", () => this.show(this.#status, this.#lack === "strip.shut"));
  }

  /** Takes what GET /v1/status says; null: the gateway does not answer, or asks for a key. */
  show(status, needsKey = false) {
    this.#status = status;
    this.#lack = needsKey ? "strip.shut" : "strip.lost";
    if (!status) return this.#showLack();
    this.#model.textContent = status.model ?? "";
    if (!status.model) say(this.#model, "strip.noModel");
    this.#showContext(status.max_context_token_count);
    this.#showLoad(this.#vision, "strip.vision", status.vision, visionLoad);
    this.#showLoad(this.#llm, "strip.llm", status.llm, llmLoad);
  }

  /** Takes how many tokens the conversation has so far. */
  use(tokenCount) {
    this.#usedCount = tokenCount;
    if (this.#status) this.#showContext(this.#status.max_context_token_count);
  }

  #showLack() {
    say(this.#vision, this.#lack);
    this.#vision.classList.add("is-bad");
    this.#llm.replaceChildren();
  }

  #showContext(count) {
    this.#meter.hidden = !count;
    if (!count) return this.#context.replaceChildren();
    const values = { used: number(this.#usedCount), all: number(count) };
    this.#meter.value = Math.min(1, this.#usedCount / count);
    say(this.#meter, "strip.context", values, "aria-label");
    say(this.#context.parentElement, "strip.context", values, "title");
    this.#context.textContent = `${values.used} / ${values.all}`;
    this.#context.setAttribute("aria-hidden", "true");
  }

  #showLoad(element, name, load, describe) {
    element.classList.toggle("is-bad", Boolean(load.error));
    delete element.dataset.words;
    element.title = load.error ?? "";
    const [key, values] = load.error ? ["strip.silent", {}] : describe(load);
    const parts = [h("b", { words: name }), ...replicas(load), h("span", { words: [key, values] })];
    element.replaceChildren(...parts);
    if (load.replica_count > 1) say(element, "strip.one", {}, "title");
    else if (load.kv_cache_utilization !== undefined) {
      const percent = number(100 * load.kv_cache_utilization);
      say(element, "strip.memory", { percent }, "title");
    }
  }
}

function replicas({ replica_count: count }) {
  if (!count) return [];
  const words = count === 1 ? "strip.replica" : ["strip.replicas", { count: number(count) }];
  return [h("span", { class: count === 1 ? "strip-lone" : null, words })];
}

function visionLoad({ waiting_tile_count: count, backlog_seconds: seconds }) {
  if (seconds >= 1) return ["strip.wait", { time: duration(1000 * seconds) }];
  return count ? ["strip.tiles", { count: number(count) }] : ["strip.idle", {}];
}

function llmLoad({ running_sequence_count: count, waiting_sequence_count: waiting }) {
  if (waiting) return ["strip.waiting", { count: number(count), waiting: number(waiting) }];
  return count ? ["strip.running", { count: number(count) }] : ["strip.idle", {}];
}
